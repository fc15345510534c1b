"""Progress output of training: the step, its loss and accuracy on the validation prompts, the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from transformers import TrainerCallback

from .processes import is_main

_SECONDS_BETWEEN_LINES = 20  # if the output is not a terminal, which could show bars


class ProgressLines:
    """Print a line every 20 seconds if the output is not a terminal, which shows bars."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, time.monotonic()

    def show(self, bars: RichProgress, bar: TaskID, figures: str = "") -> None:
        """Print the description, the amounts and the time left of a bar, and the figures, if a line is due."""
        if self._console.is_terminal or time.monotonic() - self._last <= _SECONDS_BETWEEN_LINES:
            return
        self._last = time.monotonic()
        task = bars.tasks[bars.task_ids.index(bar)]
        left = "" if task.time_remaining is None else f"  {task.time_remaining:.0f} s left"
        line = f"{task.description:44} {task.completed:.0f}/{task.total or 0:.0f}{left}  {figures}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class Progress(TrainerCallback):
    """Show a bar for the run and one for the current step; print a line when a step ends.

    Args:
        console: where to write; None: standard error. Only the main process writes.
        quiet: write nothing.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console if console and is_main() else Console(stderr=True, quiet=quiet or not is_main())
        columns = (TextColumn("{task.description:44}"), BarColumn(24), TextColumn("{task.fields[figures]}"))
        self._bars = RichProgress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
        self._all = self._bars.add_task("all steps", total=None, figures="")
        self._step: Any = None
        self._figures: dict[str, float] = {}
        self._lines = ProgressLines(self.console)

    @contextlib.contextmanager
    def run(self, steps: int) -> Iterator[None]:
        """Show the bars within this context.

        Args:
            steps: number of steps of the run.
        """
        self._bars.update(self._all, total=steps)
        with self._bars:
            yield

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show a step's bar within this context, then print its final figures."""
        self._figures, self._lines = {}, ProgressLines(self.console)
        self._step = self._bars.add_task(name, total=None, figures="")
        yield
        self._bars.remove_task(self._step)
        self._bars.advance(self._all)
        self.say(f"{name:44} {self._text()}")

    def skip(self, name: str, status: str = "done before") -> None:
        """Print that a step needs no training here: an earlier run or another process has finished it."""
        self._bars.advance(self._all)
        self.say(f"{name:44} {status}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def count(self, done: int, total: int) -> None:
        """Show the progress of a step that has no Trainer."""
        self._advance(done, total)

    def _advance(self, done: int, total: int) -> None:
        self._bars.update(self._step, completed=done, total=total)
        self._lines.show(self._bars, self._step, self._text())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bars.update(self._step, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.show({"train loss": float(logs["loss"])})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        if metrics:
            self.show({"loss": metrics["eval_loss"], "accuracy": metrics["eval_accuracy"]})

    def show(self, figures: dict[str, float]) -> None:
        """Add figures of the current step to those shown."""
        self._figures |= figures
        self._bars.update(self._step, figures=self._text())

    def _text(self) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in self._figures.items())
