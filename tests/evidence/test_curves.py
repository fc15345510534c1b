"""Accuracy over the number of groups, and over the time of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmoerm.chat.encoding import Encoded
from dmoerm.schema import Group, prompt_key
from evidence import claims, label_curve, time_to_accuracy
from evidence.label_curve import generated, summary, table


def point(right: list[float], seconds: float, gold: list[float] | None = None) -> dict[str, Any]:
    counts = {"prompts": [f"p{i}" for i in range(len(right))], "pairs": [2.0] * len(right), "right": {"dmoerm": right}}
    return {"seconds": seconds, "counts": {"chat": counts}} | ({"best_of_n": {"dmoerm": gold}} if gold else {})


def test_rows_pair_a_recipe_with_frozen_of_the_same_seeds() -> None:
    known = {
        ("frozen", "clean", 50, 0): point([1.0, 1.0, 2.0, 1.0], 10, [0.2, 0.4]),
        ("frozen", "clean", 50, 1): point([1.0, 2.0, 2.0, 1.0], 12, [0.4, 0.6]),
        ("paper", "clean", 50, 0): point([2.0, 2.0, 2.0, 2.0], 99),
        ("paper", "noisy", 50, 0): point([2.0, 1.0, 2.0, 2.0], 98),
    }
    frozen, paper, noisy = summary(known)
    assert (frozen["accuracy"][0], frozen["seeds"], frozen["seconds"]) == (68.75, 2, 11)
    assert frozen["gold"] == pytest.approx(0.4)
    assert frozen["minus"] is None
    assert paper["minus"][0] == pytest.approx(100 - 62.5)
    assert noisy["minus"] is None, "there is no frozen run to pair with"
    assert [row["minus frozen"][:5] for row in table([frozen, paper])] == ["–", "+37.5"]


def test_larger_sizes_add_groups_and_keep_the_test_part() -> None:
    small, large = (generated(["chitchat"], size, 5, seed=3) for size in (4, 9))
    assert small.test == large.test
    assert small.train == large.train[:4]
    assert {len(group.responses) for group in large.train} == {2}
    assert {len(group.responses) for group in large.test} == {4}
    test = {prompt_key(group.prompt) for group in large.test}
    assert test.isdisjoint(prompt_key(group.prompt) for group in large.train)
    assert list(large.taxonomy.tasks) == ["chitchat"]


@pytest.mark.slow
def test_every_recipe_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[str, Any] = {}
    monkeypatch.setattr(label_curve, "write", lambda name, command, rows, **more: stored.update({name: more}))
    monkeypatch.setattr(label_curve, "SAMPLED", 1)
    short = [
        "--task",
        "chitchat",
        "--size",
        "8",
        "--seed",
        "0",
        "--noise",
        "noisy",
        "--test",
        "3",
        "--layers",
        "2",
        "1",
    ]
    short += ["--output", str(tmp_path), "--recipe", "frozen", "finetune"]
    label_curve.main(["--name", "x", *short])
    first = stored["label-curve-x"]["curve"]
    assert [row["recipe"] for row in first] == ["frozen", "finetune"]
    assert all(0 <= row["gold"] <= 1 and row["seconds"] > 0 for row in first)
    label_curve.main(["--name", "x", *short])
    assert stored["label-curve-x"]["curve"] == first, "stored points are not measured again"


class Length(torch.nn.Module):
    """A classifier whose reward is the number of tokens."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        assert input_ids.shape == attention_mask.shape
        return SimpleNamespace(logits=attention_mask.sum(1, keepdim=True))


def test_accuracy_is_the_mean_over_tasks_and_padding_does_not_count() -> None:
    groups = [
        Group(prompt="a", task="x", responses=("1", "22"), scores=(0, 1)),
        Group(prompt="b", task="x", responses=("22", "1", "333"), scores=(0, 1, 2)),
        Group(prompt="c", task="y", responses=("1", "22"), scores=(1, 0)),
    ]
    examples = [(g, Encoded((1,), tuple(tuple([2] * len(r)) for r in g.responses), ())) for g in groups]
    accuracy, loss = time_to_accuracy.measured(Length(), examples, pad=0)
    assert accuracy == pytest.approx(100 * (3 / 4 + 0) / 2)
    longer, shorter = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))  # by one token
    twice = math.log(1 + math.exp(-2))
    assert loss == pytest.approx(((2 * longer + twice + shorter) / 4 + shorter) / 2)


def test_the_table_names_the_best_point() -> None:
    curves = {"trl_full": {"each": [[10, 60.0], [20, 62.0], [40, 62.0]]}, "frozen": {"ours": [[5, 63.0]]}}
    full, frozen = time_to_accuracy.table(curves)
    assert (full["best accuracy, %"], full["seconds until then"], full["seconds in all"]) == ("62.0", "20", "40")
    assert frozen["models"] == "dmoerm"


def test_the_claims_of_time_take_the_quickest_recipe_and_say_where_trl_ends_higher() -> None:
    curves = {
        "frozen": {"ours": [[10, 60.0]]},
        "finetune": {"ours": [[40, 62.0]]},
        "trl_lora": {"each": [[50, 55.0], [100, 59.0], [200, 58.0]]},
        "trl_full": {"each": [[80, 61.0], [300, 64.0]]},
    }

    def values(figures: Callable[[Any], Mapping[str, claims.Figure]]) -> dict[str, float]:
        return {name: figure.value for name, figure in figures({"curves": curves}).items()}

    assert values(claims.times_of_trl) == {"trl_lora / frozen": 10}
    assert values(claims.lead_of_trl) == {"trl_full": 2}
    assert values(claims.until_recipe) == {"trl_full / frozen": 8, "trl_full / finetune": 7.5}
