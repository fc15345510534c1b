"""Evaluation data that overlaps with the training prompts: counted, left out, and reported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_groups

from dmoerm.data.splits import load_splits
from dmoerm.errors import CheckpointError, DataError
from dmoerm.evaluation import evaluate
from dmoerm.evaluation.measure import split_overlap
from dmoerm.model import DMoERM
from dmoerm.model.training_prompts import PROMPTS_FILE, TrainingPrompts
from dmoerm.schema import Group, Message

QUIET = Console(quiet=True)


def groups_of(*prompts: Any) -> list[Group]:
    return [Group(prompt=prompt, responses=("a", "b"), scores=(1.0, 2.0)) for prompt in prompts]


def test_groups_on_training_prompts_are_counted_and_left_out() -> None:
    known = TrainingPrompts.of(["How are you?", "Who?"])
    turn = (Message(role="user", content="How are you?"),)
    groups = groups_of("How  are\nyou?", "Where?", turn, "When?")
    kept, overlap = split_overlap(groups, known)
    assert [group.prompt for group in kept] == ["Where?", "When?"]
    assert (overlap.known, overlap.groups, overlap.prompts, overlap.included) == (True, 2, 1, False)
    assert overlap.description == "held-out prompts"
    assert overlap.remark is not None
    assert "1 of the prompts (2 groups)" in overlap.remark
    assert "left out" in overlap.remark


@pytest.mark.parametrize(
    ("known", "description", "remark"),
    [
        (TrainingPrompts.of(["How are you?"]), "prompts, 1 of which the model was trained on", "included: .*too high"),
        (None, "prompts whose overlap with the training prompts is unknown", "It is not known"),
    ],
)
def test_kept_prompts_are_not_called_held_out(known: TrainingPrompts | None, description: str, remark: str) -> None:
    groups = groups_of("How are you?", "Where?")
    kept, overlap = split_overlap(groups, known, include=known is not None)
    assert kept == groups
    assert (overlap.known, overlap.groups) == (known is not None, 0 if known is None else 1)
    assert overlap.description == description
    assert re.search(remark, overlap.remark or "")


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match="the prompts of all 1 groups"):
        split_overlap(groups_of("a"), TrainingPrompts.of(["a"]))


def test_a_saved_model_knows_its_training_prompts(trained_run: Any, tmp_path: Path) -> None:
    model = DMoERM.from_pretrained(trained_run.folder / "model")
    splits = load_splits(trained_run.config)
    assert model.training_prompts == TrainingPrompts.of(group.prompt for group in splits.train)
    assert not any(group.prompt in model.training_prompts for group in splits.test)
    assert f"  {PROMPTS_FILE}\n" in (trained_run.folder / "model" / "SHA256SUMS").read_text()
    model.save_pretrained(tmp_path / "again")
    file = trained_run.folder / "model" / PROMPTS_FILE
    assert (tmp_path / "again" / PROMPTS_FILE).read_bytes() == file.read_bytes()


def test_evaluation_measures_held_out_prompts_alone(trained_run: Any) -> None:
    splits = load_splits(trained_run.config)
    held_out = evaluate(trained_run.model, splits.test, console=QUIET)
    mixed = evaluate(trained_run.model, tiny_groups(), console=QUIET)
    assert mixed.accuracy == held_out.accuracy
    assert mixed.overlap.prompts == len(trained_run.model.training_prompts)
    everything = evaluate(trained_run.model, tiny_groups(), console=QUIET, include_trained=True)
    assert everything.accuracy["dmoerm"]["mean"].prompts > held_out.accuracy["dmoerm"]["mean"].prompts


@pytest.mark.parametrize("text", ["xyz\n", "0123456789abcdef", "0123456789ABCDEF\n"])
def test_a_damaged_list_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / PROMPTS_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="not a list of prompt digests"):
        TrainingPrompts.read(tmp_path)
