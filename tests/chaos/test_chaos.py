"""`make chaos` in miniature: each kind of fault once, by a command that takes a second; slow tests run more of them."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos.campaign import STEPS, campaign
from chaos.damage import DAMAGES, HOSTILE, damage_file, load_hostile
from chaos.trials import concurrent_training, full_disk, kill_and_rerun, non_finite_loss, read_only, reference
from chaos.workloads import Labeling, Reference, Saving
from chaos.workspace import Workspace, checkpoint_hash, run, run_forked
from dmoerm.io.locking import exclusive_folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("chaos"))


@pytest.fixture(scope="module")
def labeling(workspace: Workspace) -> tuple[Labeling, Reference]:
    """`dmoerm label` of one group, which imports no torch, and what it must leave."""
    small = copy.copy(workspace)
    small.groups = workspace.query
    workload = Labeling(small)
    return workload, reference(workload, workspace.subfolder("reference of one group"))


@pytest.mark.parametrize("clock", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_command_can_be_run_again(labeling: tuple[Labeling, Reference], tmp_path: Path, clock: bool) -> None:
    assert kill_and_rerun(*labeling, tmp_path, random.Random(1), clock) == ""


def test_a_full_or_read_only_disk_is_an_error_in_one_line(labeling: tuple[Labeling, Reference], tmp_path: Path) -> None:
    for name in ("full", "read-only"):
        (tmp_path / name).mkdir()
    try:
        assert full_disk(*labeling, tmp_path / "full", 12) == ""
        assert read_only(labeling[0], tmp_path / "read-only") == ""
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_second_training_process_is_locked_out(workspace: Workspace, tmp_path: Path) -> None:
    with exclusive_folder(tmp_path / "run"):
        result = run_forked(workspace.train(tmp_path))
    assert result.failed_cleanly
    assert "is already running there" in result.output


@pytest.mark.parametrize("step", [pytest.param(step, marks=[pytest.mark.slow] * (step != STEPS[0])) for step in STEPS])
def test_a_loss_that_is_not_finite_ends_the_run(workspace: Workspace, tmp_path: Path, step: str) -> None:
    assert non_finite_loss(workspace, step, tmp_path) == ""


@pytest.mark.slow
def test_a_kill_while_saving_loses_no_model(workspace: Workspace, tmp_path: Path) -> None:
    workload = Saving(workspace)
    expected = reference(workload, workspace.subfolder("reference"))
    assert kill_and_rerun(workload, expected, tmp_path, random.Random(1)) == ""


@pytest.mark.slow
def test_a_command_that_finishes_before_the_kill_is_killed_earlier(
    labeling: tuple[Labeling, Reference], tmp_path: Path
) -> None:
    workload, expected = labeling
    assert kill_and_rerun(workload, Reference(expected.result, 60), tmp_path, random.Random(1)) == ""
    assert tmp_path / "sooner" in {folder for killed in workload.killed for folder in (killed, *killed.parents)}


@pytest.mark.slow
def test_the_same_seed_produces_the_same_bytes_in_any_process(workspace: Workspace, tmp_path: Path) -> None:
    """A second training process in the same folder is locked out."""
    hashes = set()
    for seed in ("1", "2"):
        folder = workspace.subfolder(f"seed {seed}")
        result = run(workspace.train(folder), {"PYTHONHASHSEED": seed})
        assert result.succeeded, result.output
        hashes.add(checkpoint_hash(folder / "run" / "model"))
    (only,) = hashes
    assert concurrent_training(workspace, Reference(only, 0), tmp_path) == ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(workspace: Workspace, trained_run: Any, tmp_path: Path, damage: str) -> None:
    model = trained_run.folder / "model"
    assert damage_file(workspace, model, "general/branch.safetensors", damage, tmp_path, random.Random(3)) == ""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if i % 3 else []) for i, name in enumerate(HOSTILE)]
)
def test_a_hostile_checkpoint_is_refused_or_harmless(
    workspace: Workspace, trained_run: Any, tmp_path: Path, name: str
) -> None:
    assert load_hostile(workspace, trained_run.folder / "model", name, tmp_path) == ""


@pytest.mark.slow
def test_a_command_that_takes_too_long_is_killed(workspace: Workspace, tmp_path: Path) -> None:
    endless = workspace.train(tmp_path, "phase0.epochs=100000")
    assert run_forked(endless, seconds=3).code == -signal.SIGKILL


def test_a_trial_that_loses_something_is_counted(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trials(*_: Any) -> list[tuple[str, Callable[[Path], str]]]:
        return [("x", lambda _: ""), ("x", lambda _: "lost"), ("x", lambda p: str(1 / len(p.name[:0])))]

    monkeypatch.setattr("chaos.campaign._trials", trials)
    monkeypatch.setattr("chaos.campaign.Workspace", lambda _: workspace)
    (fault,) = campaign(tmp_path, 0, lambda _: None)
    assert (fault.tried, len(fault.lost)) == (3, 2)
    assert "ZeroDivisionError" in fault.lost[1]
