"""Try every fault many times and count what was lost."""

from __future__ import annotations

import random
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.damage import DAMAGES, HOSTILE, Read, damage_file, load_hostile
from chaos.trials import concurrent_training, full_disk, kill_and_rerun, non_finite_loss, read_only, reference
from chaos.workloads import Labeling, Saving, Scoring, Workload
from chaos.workspace import ForkServer, Workspace
from dmoerm.model.integrity import SUMS

KILLS = {"train": 8, "label": 8, "score": 6, "save": 8}
DISK_SPACE = {"train": (20, 300, 700), "label": (12, 80), "score": (4, 24), "save": (64, 300)}  # kB of free space
STEPS = ("phase0", "phase1", "phase2", "phase3")  # the router is fitted exactly


@dataclass
class Fault:
    """One kind of fault: the number of trials and what was lost."""

    name: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    skipped: str = ""

    def row(self) -> dict[str, Any]:
        """Return the row of the table."""
        lost = len(self.lost)
        what = self.skipped or " ".join("; ".join(self.lost).split())[:200].replace("|", "/")
        return {"fault": self.name, "tried": self.tried, "survived": self.tried - lost, "lost": lost, "what": what}


Trial = tuple[str, Callable[[Path], str]]
"""The fault's name, and a function that tries it in a separate folder and returns what was lost (empty: nothing)."""


def campaign(
    root: Path, seed: int, report: Callable[[str], None], only: Sequence[str] = ("",), workers: int = 2
) -> list[Fault]:
    """Run all trials of the faults whose name starts with one of `only`.

    Args:
        report: is called with a line for each finished trial.
        workers: number of parallel trials.
    """
    workspace, rng = Workspace(root / "workspace"), random.Random(seed)
    with ForkServer() as fork_server, ThreadPoolExecutor(workers) as pool:
        trials = [trial for trial in _trials(workspace, fork_server, rng, workers) if trial[0].startswith(tuple(only))]
        faults = {name: Fault(name) for name, _ in trials}
        for (name, _), lost in zip(
            trials, pool.map(lambda each: _run_trial(root, *each), enumerate(trials)), strict=True
        ):
            _record(faults[name], lost)
            report(f"{name}: {lost or 'survived'}")
    return list(faults.values())


def _run_trial(root: Path, number: int, trial: Trial) -> str:
    folder = root / f"trial-{number}"
    folder.mkdir()
    try:
        return trial[1](folder)
    except PermissionError as error:
        return f"skipped: {error}"
    except Exception:
        return traceback.format_exc(limit=3).replace("\n", " ")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _record(fault: Fault, lost: str) -> None:
    if lost.startswith("skipped: "):
        fault.skipped = lost
        return
    fault.tried += 1
    if lost:
        fault.lost.append(lost)


def _trials(workspace: Workspace, fork_server: ForkServer, rng: random.Random, workers: int) -> Iterator[Trial]:
    train, label, saving = Workload(workspace), Labeling(workspace), Saving(workspace)
    model = workspace.root / "train" / "run" / "model"
    score = Scoring(workspace, model)
    workloads: Sequence[Workload] = (train, label, score, saving)
    train_folder = workspace.subfolder("train")
    expected = {train.name: reference(train, train_folder)}
    with ThreadPoolExecutor(workers) as pool:
        references = pool.map(
            lambda workload: reference(workload, workspace.subfolder(f"reference {workload.name}")), workloads[1:]
        )
        expected |= dict(zip((workload.name for workload in workloads[1:]), references, strict=True))
    for workload in workloads:
        for _ in range(KILLS[workload.name]):
            yield f"kill −9: {workload.name}", _killed(workload, expected[workload.name], rng.random())
    for workload in (train, label):
        for _ in range(2):
            yield (
                f"clock jumps and kill −9: {workload.name}",
                _killed(workload, expected[workload.name], rng.random(), clock=True),
            )
    for workload in workloads:
        for kilobytes in DISK_SPACE[workload.name]:
            yield f"full disk: {workload.name}", lambda p, w=workload, k=kilobytes: full_disk(w, expected[w.name], p, k)
        yield f"read-only disk: {workload.name}", lambda p, w=workload: read_only(w, p)
    for _ in range(2):
        yield "two training processes, one run folder", lambda p: concurrent_training(workspace, expected["train"], p)
    for step in STEPS:
        yield "a loss that is not finite", lambda p, s=step: non_finite_loss(fork_server, workspace, s, p)
    yield from _checkpoint_trials(lambda folder: fork_server.run(workspace.score(folder)), model, rng)


def _killed(workload: Workload, expected: object, seed: float, clock: bool = False) -> Callable[[Path], str]:
    return lambda folder: kill_and_rerun(workload, expected, folder, random.Random(seed), clock)  # pyright: ignore[reportArgumentType]


def _checkpoint_trials(read: Read, model: Path, rng: random.Random) -> Iterator[Trial]:
    files = sorted(str(file.relative_to(model)) for file in model.rglob("*") if file.is_file())
    assert SUMS in files
    for state, damage in DAMAGES.items():
        for name in files:
            seed = rng.random()
            yield (
                f"a checkpoint file is {state}",
                lambda p, n=name, d=damage, s=seed: damage_file(read, model, n, d, p, random.Random(s)),
            )
    for name in HOSTILE:
        yield "a hostile checkpoint", lambda p, n=name: load_hostile(read, model, n, p)
