"""Whole runs: every form trains, twice gives the same, and a killed run ends as an unbroken one."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny import HEADS, TRAINED, make_tiny_config, tiny_groups, train_quietly, write_groups
from tiny import assert_same as assert_same_scores
from transformers import AutoConfig

from dmoerm.config import Config, changed, dump_config, load_config
from dmoerm.data.splits import held_out
from dmoerm.errors import BackboneError, ConfigError, DataError
from dmoerm.model import DMoERM
from dmoerm.schema import Group
from dmoerm.taxonomy import draft_taxonomy
from dmoerm.training import Run, train
from dmoerm.training import run as module
from dmoerm.training.loop import Loop
from dmoerm.training.run import graph, path_to
from dmoerm.training.steps import Training

TASKS = ("chitchat", "objective_qa")
FORMS: dict[str, dict[str, Any]] = {
    "lora": {"base": "lora"},
    "frozen": HEADS,
    "frozen with lora experts": {"base": "frozen", "phase2": {"head_first": True}},
    "with posteriors": {"phase0": {"l2": 0.5}, "phase1": {"l2": 0.5, "phase1_fraction": 0}},
    "the paper's": {
        "backbone": {"branch_layer": 0},
        "router": {"kind": "own", "epochs": 1, "learning_rate": 1e-3},
        "encoding": {"pooling": "last"},
        "phase3": {"inputs": "embeddings", "hidden": None},
    },
    "warm start": {"warm_start": True, "phase1": {"phase1_fraction": 0}, "phase3": {"inputs": "scores"}},
}


def steps(run: Run | Path) -> dict[str, dict[str, torch.Tensor]]:
    """Step → its trained tensors."""
    root = (run.folder if isinstance(run, Run) else run) / "steps"
    return {str(file.parent.relative_to(root)): load_file(file) for file in root.rglob("state.safetensors")}


def assert_same(one: Run | Path, other: Run | Path) -> None:
    found, expected = steps(one), steps(other)
    assert found.keys() == expected.keys()
    for step, tensors in expected.items():
        assert found[step].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[step][name], tensor), f"{step}: {name}"


def assert_whole(run: Run) -> None:
    """All steps are done, and the saved model scores as the one in memory."""
    phases = {f"{phase}/{task}" for phase in ("phase1", "phase2", "phase3") for task in TASKS}
    assert steps(run).keys() == {"router", "phase0", "routing"} | phases
    loaded = DMoERM.from_pretrained(run.folder / "model")
    for group in tiny_groups(2):
        memory, disk = (model.score(group.prompt, group.responses) for model in (run.model, loaded))
        assert_same_scores(disk, memory)
        assert all(math.isfinite(score.reward) for score in disk)


def test_a_run_leaves_a_whole_model(trained_run: Run) -> None:
    assert_whole(trained_run)
    assert load_config(trained_run.folder / "config.yaml") == trained_run.config
    assert load_config(trained_run.folder / "model" / "run.yaml") == trained_run.config


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains(tiny_config: Callable[..., Config], form: str) -> None:
    run = train_quietly(tiny_config(**FORMS[form]))
    assert_whole(run)
    if form == "with posteriors":
        assert all(score.uncertainty > 0 for score in run.model.score("Is it?", ["Yes.", "No."], "chitchat"))


def test_the_same_settings_give_the_same_bits(trained_run: Run, tiny_config: Callable[..., Config]) -> None:
    assert_same(train_quietly(tiny_config(**TRAINED)), trained_run)


# --- resuming ------------------------------------------------------------------------------------------------------

# More and shorter steps, so that there are several checkpoints to be killed between; dropout, so that random streams
# must be taken up as well; experts that fit a head first.
LONG = {"epochs": 4, "evaluations": 4, "learning_rate": 1e-2}
RESUMABLE: dict[str, Any] = {
    "training": {"batch_groups": 2},
    "router": {"kind": "own"},
    "phase0": {**LONG, "epochs": 2},
    "phase1": LONG,
    "phase2": {**LONG, "lora": {"rank": 2, "dropout": 0.2}},
    "phase3": {**LONG, "dropout": 0.2},
}


@pytest.fixture(scope="module")
def unbroken(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_quietly(make_tiny_config(tiny_backbone, tmp_path_factory.mktemp("unbroken"), **RESUMABLE))


class Killed(BaseException):
    """Ends a run at once."""


def kill_at(step: str, at: int, how: Callable[[], Any]) -> Callable[..., Any]:
    """`Loop._step` that ends the run in the middle of a step."""
    take_step = Loop._step

    def take_and_kill(self: Loop, batches: Any) -> Any:
        loss = take_step(self, batches)
        if str(self.folder).endswith(f"checkpoints/{step}") and self.done == at:
            how()
        return loss

    return take_and_kill


def stop() -> None:
    raise Killed


PLACES = [
    ("router", 5),
    ("phase0/branch", 6),
    ("phase1/chitchat/branch", 5),
    ("phase2/chitchat/lora", 8),
    ("phase3/objective_qa", 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "at"), PLACES)
def test_a_broken_run_goes_on_to_the_same_end(
    unbroken: Run, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, step: str, at: int
) -> None:
    config = tiny_config(**RESUMABLE)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", kill_at(step, at, stop))
        with pytest.raises(Killed):
            train_quietly(config)
    before = {file: file.stat().st_mtime_ns for file in Path(config.output).rglob("state.safetensors")}
    run = train_quietly(config)
    assert_same(run, unbroken)
    assert {file: file.stat().st_mtime_ns for file in before} == before  # what was done is not done again
    assert (run.folder / "model" / "model.safetensors").exists()


KILLED_PROCESS = """
import os, signal
from rich.console import Console
from dmoerm.config import load_config
from dmoerm.training import train
from dmoerm.training.loop import Loop
from test_run import kill_at

Loop._step = kill_at("phase2/chitchat/lora", 8, lambda: os.kill(os.getpid(), signal.SIGKILL))
train(load_config({config!r}), Console(quiet=True))
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_end(
    unbroken: Run, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(**RESUMABLE)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    tests = Path(__file__).parent
    paths = {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    code = KILLED_PROCESS.format(config=str(file))
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | paths, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    output = Path(config.output)
    assert list((output / "checkpoints" / "phase2" / "chitchat" / "lora").glob("checkpoint-*"))
    assert not (output / "model").exists()
    assert steps(output).keys() == {"router", "phase0", "phase1/chitchat"}
    assert_same(train_quietly(config), unbroken)


def test_a_folder_with_other_settings_is_left_alone(trained_run: Run) -> None:
    other = changed(trained_run.config, {"seed": 9, "phase2.lora.alpha": 3.5})
    alpha = trained_run.config.phase2.lora.alpha
    with pytest.raises(ConfigError, match=rf"{trained_run.folder}: holds a run with other settings") as caught:
        train_quietly(other)
    assert f"(seed was {trained_run.config.seed}, now 9; phase2.lora.alpha was {alpha}, now 3.5)" in str(caught.value)
    assert load_config(trained_run.folder / "config.yaml") == trained_run.config


# --- data ----------------------------------------------------------------------------------------------------------


def without_task(group: Group) -> Group:
    return group.model_copy(update={"task": None, "capabilities": {}})


def test_groups_without_a_task_are_routed_and_used(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [without_task(g) if i % 3 == 2 else g for i, g in enumerate(tiny_groups())]
    seen: list[tuple[str | None, str | None]] = []

    def phase0(training: Training) -> None:
        seen.extend((e.group.task, e.task) for e in (*training.train, *training.validation))
        raise Killed

    monkeypatch.setattr(module, "phase0", phase0)
    files = [write_groups(groups, tmp_path / "mixed.jsonl")]
    with pytest.raises(Killed):
        train_quietly(tiny_config(data={"files": files}, router={"threshold": 0.0}))
    assert {task for given, task in seen if given is None} == {"chitchat", "objective_qa"}
    assert all(task == given for given, task in seen if given)


def test_a_backbone_that_is_not_supported_is_refused_before_anything_is_read_or_written(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    AutoConfig.for_model("t5").save_pretrained(tmp_path / "t5")
    config = tiny_config(backbone={"path": str(tmp_path / "t5")}, data={"files": ["no/such/file.jsonl"]})
    with pytest.raises(BackboneError, match="type 't5' is not supported"):
        train_quietly(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("phase2.lora", {"phase2": {"lora": {"rank": 2, "targets": ["q_proj", "v_prj"]}}}),
        ("base_lora", {"base": "lora", "base_lora": {"rank": 2, "targets": ["v_prj"]}}),
    ],
)
def test_a_target_that_is_no_layer_is_refused_before_anything_is_read_or_written(
    tiny_config: Callable[..., Config], setting: str, changes: dict[str, Any]
) -> None:
    config = tiny_config(**changes)
    message = rf"^{setting}.targets: no linear layer of the branch is called v_prj \(got .*did you mean v_proj\?"
    with pytest.raises(BackboneError, match=message):
        train_quietly(config)
    assert not Path(config.output).exists()


def test_a_capability_without_ordered_pairs_is_named_and_gets_no_expert(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(**HEADS)
    first = tiny_groups()[0]
    tied = {name: tuple(1.0 for _ in first.responses) for name in first.capabilities}
    rows = [
        group.model_copy(update={"capabilities": tied}) if group.task == first.task else group
        for group in tiny_groups()
    ]
    write_groups(rows, Path(config.data.files[0]))
    console = Console(file=io.StringIO())
    model = train(config, console).model
    assert f"no pair of task '{first.task}' by {', '.join(sorted(tied))}" in console.file.getvalue()
    assert model.config.tasks[first.task] == []
    assert all(model.config.tasks[task] for task in model.config.tasks if task != first.task)


def ids_as_tasks(groups: list[Group]) -> list[Group]:
    return [group.model_copy(update={"task": f"row {i}", "capabilities": {}}) for i, group in enumerate(groups)]


def tied_test_part(groups: list[Group]) -> list[Group]:
    """Return groups whose held-out part has ties alone; the split follows from the prompts, not from the grades."""
    held = held_out(groups, 0.3)
    return [
        group.model_copy(update={"scores": (1.0, 1.0, 1.0), "capabilities": {}}) if each else group
        for group, each in zip(groups, held, strict=True)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ids_as_tasks, r"task: each task has a single prompt \(24 tasks\), .* a task is a kind of prompt"),
        (tied_test_part, r"data.test_fraction: the held-out part has no ordered pair.*data.test_fraction=0"),
    ],
)
def test_data_that_cannot_be_evaluated_are_refused_before_anything_is_trained(
    tiny_config: Callable[..., Config], change: Callable[[list[Group]], list[Group]], message: str
) -> None:
    config = tiny_config()
    write_groups(change(tiny_groups()), Path(config.data.files[0]))
    with pytest.raises(DataError, match=message):
        train_quietly(config)
    assert not Path(config.output).exists()


def test_a_tracker_that_is_not_there_is_named_before_anything_is_trained(
    tiny_config: Callable[..., Config],
) -> None:
    with pytest.raises(ConfigError, match=r"report_to: .*comet"):
        train_quietly(tiny_config(report_to=("comet_ml",)))


def test_other_data_in_the_same_folder_are_refused(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(phase1={"epochs": 0})
    train_quietly(config)
    write_groups(tiny_groups()[2:], Path(config.data.files[0]))
    with pytest.raises(ConfigError, match="other data"):
        train_quietly(config)


def test_a_batch_with_too_few_groups_is_refused(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmoerm.training.run.world_size", lambda: 4)
    config = tiny_config(training={"batch_groups": 2})
    with pytest.raises(ConfigError, match=r"training.batch_groups: 2 groups are too few for 4 processes"):
        train_quietly(config)
    assert not Path(config.output).exists()


# --- the graph -----------------------------------------------------------------------------------------------------


def drafted(config: Config) -> Any:
    return graph(config, draft_taxonomy(tiny_groups(), "drafted"))


@pytest.mark.parametrize("warm", [False, True])
def test_a_step_stands_after_what_it_needs(tiny_config: Callable[..., Config], warm: bool) -> None:
    found = drafted(tiny_config(warm_start=warm))
    names = [step.name for step in found]
    assert names[:2] == ["router", "phase0"]
    assert names[-1] == "routing"
    assert set(names[2:-1]) == {f"{phase}/{task}" for phase in ("phase1", "phase2", "phase3") for task in TASKS}
    for place, step in enumerate(found):
        assert set(step.needs) <= set(names[:place])


def test_a_path_holds_what_is_needed_and_no_more(tiny_config: Callable[..., Config]) -> None:
    cold, warm = drafted(tiny_config()), drafted(tiny_config(warm_start=True))
    assert [s.name for s in path_to("phase2/chitchat", cold)] == ["router", "phase1/chitchat", "phase2/chitchat"]
    assert "phase0" in [s.name for s in path_to("phase2/chitchat", warm)]
    whole = ["router", "phase0", *(f"{phase}/objective_qa" for phase in ("phase1", "phase2", "phase3"))]
    assert [s.name for s in path_to("phase3/objective_qa", cold)] == whole


def test_a_task_without_capabilities_has_no_phase_2(tiny_config: Callable[..., Config]) -> None:
    bare = [group.model_copy(update={"capabilities": {}}) for group in tiny_groups()]
    found = graph(tiny_config(), draft_taxonomy(bare, "drafted"))
    assert not [step.name for step in found if step.name.startswith("phase2")]
    assert "phase1/chitchat" in next(step for step in found if step.name == "phase3/chitchat").needs
