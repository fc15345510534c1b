"""A trained model grows, shrinks and is repaired; what is not changed stays as it is, to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_exact_config, make_tiny_config, tiny_groups, train_quietly, write_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.model import DMoERM
from dmoerm.model.configuration import ModelChange, with_changes

OLD, NEW = "chitchat", "objective_qa"
BFLOAT16 = {"backbone": {"dtype": "bfloat16"}}
FORMS: dict[str, Callable[..., Any]] = {"heads": make_exact_config, "lora branches": make_tiny_config}
CHANGES = {"heads": {}, "lora branches": {"base": "lora", "phase2": {"lora": {"rank": 2}}}}
MAY_CHANGE = {
    *("config.json", "model.safetensors", "SHA256SUMS", "README.md", "training_prompts.txt"),
    *("router/prompt_statistics.safetensors",),
}
AGGREGATOR = tuple(f"tasks.task:{OLD}.{part}" for part in ("aggregator", "calibration", "normalizer", "posterior"))
GROUPS = tiny_groups(16)


def dmoerm(*arguments: object, fails: bool = False) -> str:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])
    assert (result.exit_code != 0) == fails, result.output
    return result.output


def trained(form: str, backbone: str, folder: Path, tasks: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = write_groups([group for group in GROUPS if group.task in tasks], folder / "mine.jsonl")
    return train_quietly(FORMS[form](backbone, folder, **BFLOAT16 | CHANGES[form] | {"data": {"files": [file]}})).folder


@pytest.fixture(scope="module", params=["heads", pytest.param("lora branches", marks=pytest.mark.slow)])
def grown(request: pytest.FixtureRequest, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of one task, and `grown`, to which another task was added."""
    folder = tmp_path_factory.mktemp("growing")
    run = trained(request.param, tiny_backbone, folder, (OLD,))
    file = write_groups([g for g in GROUPS if g.task == NEW], folder / "new.jsonl")
    dmoerm("add", run, "--task", NEW, "--set", f"data.files=[{file}]", "--output", folder / "grown")
    return folder


@pytest.fixture(scope="module")
def both(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a run of both tasks with exact heads."""
    return trained("heads", tiny_backbone, tmp_path_factory.mktemp("both"), (OLD, NEW)) / "model"


def rewards(folder: Path, task: str) -> list[Any]:
    rm = DMoERM.from_pretrained(folder)
    prompts = [group for group in GROUPS if group.task == task][:5]
    scores = rm.score([g.prompt for g in prompts], [g.responses for g in prompts], task=[task] * len(prompts))
    return [(s.reward, s.capabilities, s.uncertainty, s.temperature) for row in scores for s in row]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All trained tensors by name, the router's by row."""
    tasks = list(json.loads((folder / "config.json").read_text())["tasks"])
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if name.startswith("router.classify")]:
        state |= {f"{name}.{task}": row for task, row in zip(tasks, state.pop(name), strict=True)}
    return state


def assert_kept(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> None:
    names = [name for name in before if not name.startswith(but or ("-",))]
    assert names
    assert [name for name in names if not torch.equal(before[name], after[name])] == []


def test_adding_a_task_changes_nothing_else(grown: Path) -> None:
    base, after = grown / "run" / "model", grown / "grown"
    files = {str(file.relative_to(base)) for file in base.rglob("*") if file.is_file()}
    assert [f for f in files - MAY_CHANGE if (base / f).read_bytes() != (after / f).read_bytes()] == []
    assert_kept(tensors(base), tensors(after))
    assert rewards(base, OLD) == rewards(after, OLD)
    assert not list(grown.glob(".*growing"))


def test_a_task_is_added_on_a_backbone_that_has_moved(grown: Path, tiny_backbone: str, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(grown / "run" / "model", tmp_path / "model"))
    for name in ("config.json", "run.yaml"):
        (moved / name).write_text((moved / name).read_text().replace(tiny_backbone, "/nowhere"))
    (moved / "SHA256SUMS").unlink()
    more = ("--backbone", tiny_backbone, "--output", tmp_path / "grown")
    dmoerm("add", moved, "--task", NEW, "--set", f"data.files=[{grown / 'new.jsonl'}]", *more)
    files = sorted(file.relative_to(tmp_path / "grown") for file in (tmp_path / "grown").rglob("*.safetensors"))
    assert [f for f in files if (tmp_path / "grown" / f).read_bytes() != (grown / "grown" / f).read_bytes()] == []


def routed(folder: Path) -> tuple[float, list[Any]]:
    """Return the share of prompts whose most likely task is their own, and the scores of their first responses."""
    scores = DMoERM.from_pretrained(folder).score([g.prompt for g in GROUPS], [g.responses[:1] for g in GROUPS])
    right = [max(s.route, key=s.route.get) == g.task for g, (s,) in zip(GROUPS, scores, strict=True)]
    return sum(right) / len(right), [s for (s,) in scores]


def test_the_new_task_is_recognized_and_scored(grown: Path) -> None:
    accuracy, scores = routed(grown / "grown")
    assert accuracy >= 0.9
    new = [score for score in scores if score.task == NEW]
    assert {name for score in new for name in score.capabilities} == {"correctness", "logic"}
    assert len({score.reward for score in new}) > 1


def test_removing_the_new_task_gives_the_model_before(grown: Path, tmp_path: Path) -> None:
    dmoerm("remove", grown / "grown", "--task", NEW, "--output", tmp_path / "again")
    before, after = tensors(grown / "run" / "model"), tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    assert_kept(before, after)
    statistics = [
        load_file(f / "router/prompt_statistics.safetensors") for f in (grown / "run/model", tmp_path / "again")
    ]
    assert_kept(*statistics)
    assert not (tmp_path / "again" / "tasks" / NEW).exists()


def test_an_exported_task_joins_a_model_of_the_same_origin(grown: Path, tmp_path: Path) -> None:
    dmoerm("export", grown / "grown", "--task", NEW, "--output", tmp_path / "part")
    assert list(DMoERM.from_pretrained(tmp_path / "part").config.tasks) == [NEW]
    dmoerm("merge", grown / "run", tmp_path / "part", "--output", tmp_path / "joined")
    row = (f"router.classify.weight.{NEW}", f"router.classify.bias.{NEW}")  # fitted to other draws
    assert_kept(tensors(grown / "grown"), tensors(tmp_path / "joined"), but=row)
    for task in (OLD, NEW):
        assert rewards(grown / "grown", task) == rewards(tmp_path / "joined", task)
    assert routed(tmp_path / "joined")[0] >= 0.8  # its row is fitted to drawn prompts, not to the task's own


@pytest.mark.parametrize("part", ["trunk", "general"])
def test_tasks_on_another_trunk_or_general_model_are_refused(both: Path, tmp_path: Path, part: str) -> None:
    rm = DMoERM.from_pretrained(both)
    rm.keep_tasks([NEW])
    parameter = next(rm.trunk.parameters()) if part == "trunk" else rm.general.head.score.weight
    parameter.data[0, 0] += 1
    rm.task_model(NEW).aggregator.linear.weight.data.fill_(1)  # of the general model's score too
    rm.save_pretrained(tmp_path / "other")
    dmoerm("export", both, "--task", OLD, "--output", tmp_path / "base")
    said = dmoerm("merge", tmp_path / "base", tmp_path / "other", "--output", tmp_path / "joined", fails=True)
    assert part in said
    assert not (tmp_path / "joined").exists()


def test_a_capability_leaves_and_returns(both: Path, tmp_path: Path) -> None:
    dmoerm("remove", both, "--capability", f"{OLD}/empathy", "--output", tmp_path / "less")
    dmoerm("add", tmp_path / "less", "--capability", f"{OLD}/empathy", "--output", tmp_path / "again")
    before, less, after = (tensors(folder) for folder in (both, tmp_path / "less", tmp_path / "again"))
    for state in (less, after):
        assert_kept(before, state, but=(*AGGREGATOR, f"tasks.task:{OLD}.experts"))
    experts = f"tasks.task:{OLD}.experts.heads"
    for name in ("score.weight", "normalizer.mean", "normalizer.scale"):  # empathy was the first and is now the last
        assert torch.equal(before[f"{experts}.0.{name}"], after[f"{experts}.1.{name}"])
        assert torch.equal(before[f"{experts}.1.{name}"], less[f"{experts}.0.{name}"])
    weights = [state[f"tasks.task:{OLD}.aggregator.linear.weight"] for state in (before, after)]
    assert torch.equal(weights[0][[1, 0, 2, 3, 4]], weights[1])
    assert rewards(both, NEW) == rewards(tmp_path / "again", NEW)


def expert(folder: Path, index: int, name: str) -> list[bytes]:
    """The bytes of one expert: its head, and its LoRA if it has one."""
    state, start = tensors(folder), f"tasks.task:{OLD}.experts.heads.{index}."
    head = [tensor.numpy().tobytes() for key, tensor in sorted(state.items()) if key.startswith(start)]
    return head + [file.read_bytes() for file in folder.rglob(f"{name}/adapter_model.safetensors")]


def test_retraining_an_expert_in_place_keeps_the_others(grown: Path, tmp_path: Path) -> None:
    base, model = grown / "run" / "model", tmp_path / "model"
    dmoerm("export", base, "--task", OLD, "--output", model)
    dmoerm("retrain", model, "--capability", f"{OLD}/empathy", "--set", "seed=3", "--in-place")
    assert expert(model, 0, "empathy") != expert(base, 0, "empathy")
    assert expert(model, 1, "proactivity") == expert(base, 1, "proactivity")
    assert_kept(tensors(base), tensors(model), but=(*AGGREGATOR, f"tasks.task:{OLD}.experts.heads.0"))
    history = DMoERM.from_pretrained(model).config.history
    assert [change["change"] for change in history] == ["export", "retrain"]
    assert history[1]["settings"] == {"seed": 3}
    assert f"{OLD}/empathy" in (model / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", OLD, "--output", "x"], "the model has this task"),
        (["--task", "more", "--output", "x", "--set", "encoding.pooling=last"], "encoding.pooling"),
        (["--task", "more", "--output", "x", "--set", "data.files=[]"], "contain no groups"),
        (["--task", "more"], "--in-place"),
        (["--capability", OLD, "--in-place"], "write TASK/NAME"),
        (["--capability", f"{OLD}/wit", "--output", "x"], "no label of 'wit'"),
        (["--capability", f"{OLD}/empathy", "--output", "x"], "has this capability"),
    ],
)
def test_what_cannot_be_added_is_refused(both: Path, arguments: list[str], message: str) -> None:
    assert message in dmoerm("add", both, *arguments, fails=True)


def test_the_model_of_the_package_does_not_change() -> None:
    assert "human is a part of the package; give --output" in dmoerm(
        "remove", "human", "--task", "x", "--in-place", fails=True
    )


def test_the_card_lists_each_change_once() -> None:
    history = [ModelChange(change="add", task=name, time="now", data="d" * 64).model_dump() for name in "ab"]
    first = with_changes("# Card\n\n## Use\n\nrun\n", history[:1])
    second = with_changes(first, history)
    assert second.count("## Changes after training") == second.count("`a` added") == second.count("`b` added") == 1
    assert second.startswith("# Card\n\n## Changes")
    assert second.endswith("## Use\n\nrun\n")
