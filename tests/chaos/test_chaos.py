"""`make chaos` in miniature: each kind of fault once, by a command that takes a second; slow tests run more of them."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.campaign import STEPS, campaign
from chaos.damage import DAMAGES, HOSTILE, Read, damage_file, load_hostile
from chaos.trials import concurrent_training, full_disk, kill_and_rerun, non_finite_loss, read_only, reference
from chaos.workloads import Labeling, Reference, Saving
from chaos.workspace import ForkServer, Workspace, checkpoint_hash, run
from dmoerm.io.locking import exclusive_folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("chaos"))


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture
def read(workspace: Workspace, fork_server: ForkServer) -> Read:
    """Load checkpoints in a process that the tests share."""
    return lambda model: fork_server.run(workspace.score(model))


@pytest.fixture(scope="module")
def labeling(workspace: Workspace) -> tuple[Labeling, Reference]:
    """`dmoerm label` of one group, which imports no torch, and what it must leave."""
    small = copy.copy(workspace)
    small.groups = workspace.query
    workload = Labeling(small)
    return workload, reference(workload, workspace.subfolder("reference of one group"))


@pytest.mark.parametrize("clock", [False, True])
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


def test_a_second_training_process_is_locked_out(workspace: Workspace, fork_server: ForkServer, tmp_path: Path) -> None:
    with exclusive_folder(tmp_path / "run"):
        result = fork_server.run(workspace.train(tmp_path))
    assert result.failed_cleanly
    assert "is already running there" in result.output


@pytest.mark.parametrize("step", [pytest.param(step, marks=[pytest.mark.slow] * (step != STEPS[0])) for step in STEPS])
def test_a_loss_that_is_not_finite_ends_the_run(
    workspace: Workspace, fork_server: ForkServer, tmp_path: Path, step: str
) -> None:
    assert non_finite_loss(fork_server, workspace, step, tmp_path) == ""


@pytest.mark.slow
def test_a_kill_while_saving_loses_no_model(workspace: Workspace, tmp_path: Path) -> None:
    workload = Saving(workspace)
    expected = reference(workload, workspace.subfolder("reference"))
    assert kill_and_rerun(workload, expected, tmp_path, random.Random(1)) == ""


@pytest.mark.slow
def test_a_command_that_finishes_before_the_kill_is_killed_earlier(workspace: Workspace, tmp_path: Path) -> None:
    workload = Labeling(workspace)
    expected = reference(workload, workspace.subfolder("reference label"))
    assert kill_and_rerun(workload, Reference(expected.result, 60), tmp_path, random.Random(1)) == ""
    (folder,) = workload.killed
    assert folder.name == "sooner"


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
def test_a_damaged_file_is_named(read: Read, trained_run: Any, tmp_path: Path, damage: str) -> None:
    model = trained_run.folder / "model"
    assert damage_file(read, model, "trunk.safetensors", DAMAGES[damage], tmp_path, random.Random(3)) == ""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if i % 3 else []) for i, name in enumerate(HOSTILE)]
)
def test_a_hostile_checkpoint_is_refused_or_harmless(read: Read, trained_run: Any, tmp_path: Path, name: str) -> None:
    assert load_hostile(read, trained_run.folder / "model", name, tmp_path) == ""


@pytest.mark.slow
def test_a_command_that_takes_too_long_is_killed_and_the_next_one_runs(workspace: Workspace, tmp_path: Path) -> None:
    with ForkServer(seconds=3) as fork_server:
        assert fork_server.run(workspace.train(tmp_path, "phase0.epochs=100000")).code == -signal.SIGKILL
        assert fork_server.run(["data", "check", str(workspace.groups)]).succeeded


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
