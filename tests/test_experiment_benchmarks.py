"""The experiments of benchmarks/ on kinds of experts and on uncertainty: their parts are right, they run and resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from tiny import make_exact_config, make_tiny_config, tiny_groups, write_groups

from dmoerm.config import BackboneConfig
from dmoerm.data.readers import read_groups
from dmoerm.experiments.public_benchmarks import SECTIONS, run_benchmark
from dmoerm.model.backbone import load_backbone
from dmoerm.model.heads import embed
from dmoerm.model.packing import pack
from dmoerm.model.routing import Routing
from dmoerm.training import routing_step

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import adding_tasks
import interference
import learning_curves
import rewardbench_figures
import uncertainty
from reader import Adapted, Reader, join, memories


def test_the_auroc_counts_pairs_of_a_positive_and_a_negative():
    positive, weight = np.array([True, True, False, False]), np.array([1.0, 1, 1, 1])
    assert uncertainty.auroc(positive, np.array([4.0, 3, 2, 1]), weight) == 1
    assert uncertainty.auroc(positive, np.array([4.0, 2, 3, 1]), weight) == 0.75
    assert uncertainty.auroc(positive, np.zeros(4), weight) == 0.5
    assert uncertainty.auroc(positive, np.array([4.0, 2, 3, 1]), np.array([3.0, 1, 1, 1])) == pytest.approx(7 / 8)


def test_the_jackknife_of_rewards():
    rewards = torch.tensor([1.0, 2.0, 4.0, 4.0, 9.0])
    assert uncertainty.jackknife(rewards) == pytest.approx((0.8 * 5 * rewards.numpy().var()) ** 0.5)


def test_uncertainty_is_measured_on_a_run(tiny_backbone, tmp_path, capsys):
    config = make_exact_config(tiny_backbone, tmp_path).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    uncertainty.main([str(tmp_path / "config.yaml"), "--seed", "3", "4", "--json", str(tmp_path / "figures.json")])
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["wrong_pairs"].keys() == {"chitchat", "objective_qa", "mean"} == document["unseen_tasks"].keys()
    for row in document["wrong_pairs"].values():
        assert row.keys() == set(uncertainty.MEASURES)
        assert all(0 <= value <= 1 for value in row.values())
    for row in document["unseen_tasks"].values():
        assert row.keys() == set(uncertainty.UNSEEN_MEASURES)
        assert all(0 <= value <= 1 for value in row.values())
    assert "unseen tasks" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_untrained_reader_is_one_more_token(tiny_backbone: str, dtype: Any):
    """Without LoRA, its state is that of a token with the same initial state after the response."""
    branch = load_backbone(BackboneConfig(path=tiny_backbone, dtype=dtype))[0]
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(tokens, 32, generator=generator).to(branch.dtype)

    states = [(draw(prompt), [draw(row) for row in rows]) for prompt, rows in ((3, (4, 7)), (9, (2,)))]
    token = draw(1)[0]
    reader = Reader(branch, token).eval()
    rows = [memory for group in memories(branch, states) for memory in group]
    found = reader(join(rows, torch.zeros(3, 1)))
    longer = [(prompt, [torch.cat([row, token[None]]) for row in responses]) for prompt, responses in states]
    expected = embed(branch, pack(longer), "last")[0]
    tolerance = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for layer in reader.modules():
        if isinstance(layer, Adapted):
            torch.nn.init.normal_(layer.lora_B)
    changed = reader(join(rows, torch.zeros(3, 1))).detach()
    assert float((changed - expected).abs().max()) > 0.1


@pytest.mark.slow
def test_learning_curves_are_measured_and_resumed(tiny_backbone, tmp_path, monkeypatch):
    make_tiny_config(tiny_backbone, tmp_path)  # writes groups.jsonl
    monkeypatch.setattr(learning_curves, "EPOCHS", dict.fromkeys(learning_curves.KINDS, 1))
    settings = [f"backbone.path={tiny_backbone}", "backbone.branch_layer=2", f"cache={tmp_path / 'cache'}", "seed=1"]
    settings += [f"data.files=[{tmp_path / 'groups.jsonl'}]", f"output={tmp_path / 'curves'}"]
    config = learning_curves.load_config("finetune", settings)
    trained = []
    fit_reader = learning_curves.FITS["reader"]

    def watched(run, *parts):
        before = {name: tensor.clone() for name, tensor in run.model.general.branch.state_dict().items()}
        result = fit_reader(run, *parts)
        after = run.model.general.branch.state_dict()
        trained.append([name for name, tensor in before.items() if not torch.equal(tensor, after[name])])
        return result

    monkeypatch.setitem(learning_curves.FITS, "reader", watched)
    rows = learning_curves.measure(config, learning_curves.KINDS, [3, 0])
    assert trained == [[], []]  # a reader leaves the branch as it is
    assert [(row["kind"], row["groups"]) for row in rows[:4]] == [(kind, 6) for kind in learning_curves.KINDS]
    assert rows[4]["groups"] == 12
    assert all(0 <= row["accuracy"] <= 1 and row["prompts"] for row in rows)
    monkeypatch.setattr(learning_curves, "FITS", {})  # nothing is fitted again
    assert learning_curves.measure(config, learning_curves.KINDS, [3, 0]) == rows
    monkeypatch.setitem(learning_curves.RATES, "lora", (1e-5,))
    with pytest.raises(KeyError, match="lora"):  # other rates are another measurement
        learning_curves.measure(config, ["lora"], [3])
    with (tmp_path / "out.txt").open("w") as file:
        Console(file=file, width=200).print(learning_curves.table(rows))
    lines = (tmp_path / "out.txt").read_text()
    assert all(kind in lines for kind in learning_curves.KINDS)


def test_interference_is_measured_and_resumed(tiny_backbone, tmp_path, monkeypatch):
    config = make_exact_config(tiny_backbone, tmp_path).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    loaded = learning_curves.load_config(str(tmp_path / "config.yaml"), [f"output={tmp_path / 'fits'}"])
    rows = interference.fits(loaded, "head", [1, 2], 1)
    assert [row["tasks"] for row in rows] == [["chitchat"], ["objective_qa"], ["chitchat", "objective_qa"]]
    assert rows[2]["groups"] == rows[0]["groups"] + rows[1]["groups"]
    monkeypatch.setattr(interference, "FITS", {})  # nothing is fitted again
    assert interference.fits(loaded, "head", [1, 2], 1) == rows
    alone, both = interference.summary(rows, [1, 2, 5])
    assert alone["− alone, points"] == "–"
    means = [
        np.mean([np.mean(list(row["right"][task].values())) for row in some for task in row["right"]])
        for some in (rows[:2], rows[2:])
    ]
    assert alone["accuracy, %"] == f"{100 * means[0]:.1f}"
    assert both["− alone, points"].startswith(f"{100 * (means[1] - means[0]):+.1f} (")


def test_tasks_arrive_one_after_the_other(tiny_backbone, tmp_path, monkeypatch):
    """Of kinds that the router tells apart; otherwise heads are fitted to all prompts and change with every task."""
    monkeypatch.setattr(routing_step, "search", lambda forms, exact: (False, Routing()))
    config = make_exact_config(tiny_backbone, tmp_path).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for task in ("chitchat", "objective_qa"):
        write_groups([group for group in tiny_groups(20) if group.task == task], tmp_path / f"{task}.jsonl")
    files = [str(tmp_path / f"{task}.jsonl") for task in ("chitchat", "objective_qa")]
    asked = ["--config", str(tmp_path / "config.yaml"), "--arrival", *files, "--seed", "1", "--output"]
    adding_tasks.main([*asked, str(tmp_path / "adding")])
    first, second = json.loads((tmp_path / "adding" / "seed1" / "rows.json").read_text())
    assert (first["old"], second["old"]) == ([], ["chitchat"])
    assert first["changed"] == second["changed"] == 0, "the earlier task's model stays as it is"
    assert second["accuracy"].keys() == {"dmoerm", "retrained", "continued"}
    assert second["accuracy"]["dmoerm"].keys() == {"chitchat", "objective_qa"}
    assert first["accuracy"]["continued"] == first["accuracy"]["retrained"]
    assert second["accuracy"]["continued"] != first["accuracy"]["continued"]
    state = tmp_path / "adding" / "seed1"
    steps = [(state / str(k) / "steps" / "phase3" / "chitchat" / "state.safetensors").read_bytes() for k in (1, 2)]
    assert steps[0] == steps[1]
    (figures,) = adding_tasks.summary([[first, second]])
    assert (figures["task"], figures["changed groups"]) == ("objective_qa", "0")


@pytest.mark.parametrize(
    ("name", "rows", "subsets"),
    [
        ("rewardbench", rewardbench_figures.rows_1, sum(map(len, SECTIONS.values()))),
        ("rewardbench2", rewardbench_figures.rows_2, 6),
    ],
)
def test_rows_of_rewardbench_are_read_with_all_their_subsets(write_rows, name, rows, subsets):
    """A reward that knows what people prefer is right everywhere, and its opposite nowhere."""
    groups = read_groups(write_rows(rows(2))).groups
    ranks = {(str(g.prompt), text): rank for g in groups for text, rank in zip(g.responses, g.ranks or (), strict=True)}

    def scorer(sign):
        def score_all(queries):
            return [[sign * ranks[str(q.prompt), text] for text in q.responses] for q in queries]

        return SimpleNamespace(score_all=score_all)

    results = run_benchmark(name, {"right": scorer(-1), "wrong": scorer(1)}, groups, True).results
    assert [len(result.subsets) for result in results.values()] == [subsets, subsets]
    assert all(score >= 1 for score, _ in results["right"].subsets.values())
    assert all(score <= 0 for score, _ in results["wrong"].subsets.values())


def test_the_page_of_results_stays_short() -> None:
    page = Path(__file__).parents[1] / "docs" / "results.md"
    assert len(page.read_text().splitlines()) <= 250
