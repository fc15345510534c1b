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

from chaos.damage import DAMAGES, HOSTILE, damage_file, load_hostile
from chaos.trials import concurrent_training, full_disk, kill_and_rerun, non_finite_loss, read_only, reference
from chaos.workloads import Labeling, Saving, Scoring, Workload
from chaos.workspace import Workspace
from dmoerm.model.integrity import SUMS

KILLS = {"train": 8, "label": 8, "score": 6, "save": 8}
DISK_SPACE = {"train": (20, 300, 700), "label": (12, 80), "score": (4, 24), "save": (64, 300)}  # kB of free space
WORKERS = 2  # parallel trials
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


def campaign(root: Path, seed: int, report: Callable[[str], None], only: Sequence[str] = ("",)) -> list[Fault]:
    """Run all trials of the faults whose name starts with one of `only`; `report` is called with a line for each."""
    workspace, rng = Workspace(root / "workspace"), random.Random(seed)

    def tried(numbered: tuple[int, Trial]) -> str:
        number, (_, trial) = numbered
        folder = root / f"trial-{number}"
        folder.mkdir()
        try:
            return trial(folder)
        except PermissionError as error:
            return f"skipped: {error}"
        except Exception:
            return traceback.format_exc(limit=3).replace("\n", " ")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    with ThreadPoolExecutor(WORKERS) as pool:
        trials = [trial for trial in _trials(workspace, rng) if trial[0].startswith(tuple(only))]
        faults = {name: Fault(name) for name, _ in trials}
        for (name, _), lost in zip(trials, pool.map(tried, enumerate(trials)), strict=True):
            if lost.startswith("skipped: "):
                faults[name].skipped = lost
            else:
                faults[name].tried += 1
                faults[name].lost += [lost] if lost else []
            report(f"{name}: {lost or 'survived'}")
    return list(faults.values())


def _trials(workspace: Workspace, rng: random.Random) -> Iterator[Trial]:
    model = workspace.root / "train" / "run" / "model"
    train, label = Workload(workspace), Labeling(workspace)
    expected = {train.name: reference(train, workspace.subfolder("train"))}
    workloads = (train, label, Scoring(workspace, model), Saving(workspace))
    for workload in workloads[1:]:
        expected[workload.name] = reference(workload, workspace.subfolder(f"reference {workload.name}"))

    def killed(workload: Workload, clock: bool = False) -> Callable[[Path], str]:
        own = random.Random(rng.random())
        return lambda folder: kill_and_rerun(workload, expected[workload.name], folder, own, clock)

    for workload in workloads:
        for _ in range(KILLS[workload.name]):
            yield f"kill −9: {workload.name}", killed(workload)
    for workload in (train, label):
        for _ in range(2):
            yield f"clock jumps and kill −9: {workload.name}", killed(workload, clock=True)
    for workload in workloads:
        for kilobytes in DISK_SPACE[workload.name]:
            yield f"full disk: {workload.name}", lambda p, w=workload, k=kilobytes: full_disk(w, expected[w.name], p, k)
        yield f"read-only disk: {workload.name}", lambda p, w=workload: read_only(w, p)
    for _ in range(2):
        yield "two training processes, one run folder", lambda p: concurrent_training(workspace, expected["train"], p)
    for step in STEPS:
        yield "a loss that is not finite", lambda p, s=step: non_finite_loss(workspace, s, p)
    files = sorted(str(file.relative_to(model)) for file in model.rglob("*") if file.is_file())
    assert SUMS in files
    for state in DAMAGES:
        for name in files:
            own = random.Random(rng.random())
            yield (
                f"a checkpoint file is {state}",
                lambda p, n=name, d=state, r=own: damage_file(workspace, model, n, d, p, r),
            )
    for name in HOSTILE:
        yield "a hostile checkpoint", lambda p, n=name: load_hostile(workspace, model, n, p)
