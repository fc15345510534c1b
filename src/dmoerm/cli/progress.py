"""What a labeling run shows while it asks: how far, how fast, how much it has spent, and the time left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..labeling.run import Tally


class Asking:
    """A line on the standard error stream; use as a context manager."""

    def __init__(self, total: int) -> None:
        self._progress = Progress(
            TextColumn("asking"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f}/s  spent {task.fields[cost]:.4f}  {task.fields[tokens]:,} tokens"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[faults]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=total, rate=0.0, cost=0.0, tokens=0, faults="")

    def __enter__(self) -> Asking:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def update(self, tally: Tally) -> None:
        """Shows where the run stands."""
        faults = {"refused": tally.refused, "failed": tally.failed, "unanswered": tally.unanswered}
        self._progress.update(
            self._task,
            completed=tally.answered + tally.known + tally.elsewhere + sum(faults.values()),
            rate=self._progress.tasks[self._task].speed or 0.0,
            cost=tally.cost,
            tokens=tally.prompt_tokens + tally.completion_tokens,
            faults="  ".join(f"{name} {count}" for name, count in faults.items() if count),
        )
