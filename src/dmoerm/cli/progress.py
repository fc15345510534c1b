"""The progress line of a labeling run: calls, rate, cost, tokens and remaining time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..labeling.runner import RunStatistics


class LabelingProgress:
    """A progress line on standard error. Use it as a context manager."""

    def __init__(self, total: int) -> None:
        self._progress = Progress(
            TextColumn("labeling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f}/s  spent {task.fields[cost]:.4f}  {task.fields[tokens]:,} tokens"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[faults]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=total, rate=0.0, cost=0.0, tokens=0, faults="")

    def __enter__(self) -> LabelingProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def update(self, statistics: RunStatistics) -> None:
        """Show the statistics of the run."""
        faults = {
            "unusable": statistics.unusable,
            "refused": statistics.refused,
            "failed": statistics.failed,
            "unanswered": statistics.unanswered,
        }
        self._progress.update(
            self._task,
            completed=sum(
                getattr(statistics, name)
                for name in ("answered", "refused", "failed", "known", "elsewhere", "unanswered")
            ),
            rate=self._progress.tasks[self._task].speed or 0.0,
            cost=statistics.cost,
            tokens=statistics.prompt_tokens + statistics.completion_tokens,
            faults="  ".join(f"{name} {count}" for name, count in faults.items() if count),
        )
