"""What a person sees while training runs: the step, its loss and consistency on held-out prompts, the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from transformers import TrainerCallback

from .processes import is_main

_SECONDS_BETWEEN_LINES = 20  # where there is no terminal to draw bars on


class Progress(TrainerCallback):
    """A bar for the whole run and one for the step at hand; a line for each step that ends.

    Args:
        console: where to write; quiet: write nothing. Only the main process writes.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console if console and is_main() else Console(stderr=True, quiet=quiet or not is_main())
        columns = (TextColumn("{task.description:44}"), BarColumn(24), TextColumn("{task.fields[figures]}"))
        self._bars = RichProgress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
        self._all = self._bars.add_task("all steps", total=None, figures="")
        self._step: Any = None
        self._figures: dict[str, float] = {}
        self._told = 0.0

    @contextlib.contextmanager
    def run(self, steps: int) -> Iterator[None]:
        """Shows the bars while the block runs."""
        self._bars.update(self._all, total=steps)
        with self._bars:
            yield

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step's bar; the line that stays says how it ended."""
        self._figures, self._told = {}, time.monotonic()
        self._step = self._bars.add_task(name, total=None, figures="")
        yield
        self._bars.remove_task(self._step)
        self._bars.advance(self._all)
        self.say(f"{name:44} {self._text()}")

    def skip(self, name: str, how: str = "done before") -> None:
        """A step that was done before, or by another process."""
        self._bars.advance(self._all)
        self.say(f"{name:44} {how}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def count(self, done: int, total: int) -> None:
        """How far a step without a Trainer is."""
        self._advance(done, total)

    def _advance(self, done: int, total: int) -> None:
        self._bars.update(self._step, completed=done, total=total)
        if not self.console.is_terminal and time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            task = self._bars.tasks[self._bars.task_ids.index(self._step)]
            left = "" if task.time_remaining is None else f"  {task.time_remaining:.0f} s left"
            self.say(f"{task.description:44} {done}/{total}{left}  {self._text()}")

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
        """Figures of the step at hand, beside those shown before."""
        self._figures |= figures
        self._bars.update(self._step, figures=self._text())

    def _text(self) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in self._figures.items())
