"""Progress of training: bars or lines on the console, and figures for experiment trackers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ..errors import ConfigError
from .processes import is_main, process_state

_SECONDS_BETWEEN_LINES = 20


class Progress:
    """Show a bar for the run and one for the current step; print a line when a step ends.

    If the output is not a terminal, which could show bars, print a line every 20 seconds instead.

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
        self._printed = time.monotonic()

    @contextlib.contextmanager
    def run(self, steps: int) -> Iterator[None]:
        """Show the bars of a run with this number of steps within the context."""
        self._bars.update(self._all, total=steps)
        with self._bars:
            yield

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show a step's bar within this context, then print its final figures."""
        self._figures, self._printed = {}, time.monotonic()
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

    def count(self, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """Show how much of the current step is done, and add figures to those shown."""
        self._figures |= figures or {}
        self._bars.update(self._step, completed=done, total=total, figures=self._text())
        if self.console.is_terminal or time.monotonic() - self._printed <= _SECONDS_BETWEEN_LINES:
            return
        self._printed = time.monotonic()
        bar = self._bars.tasks[self._bars.task_ids.index(self._step)]
        left = "" if bar.time_remaining is None else f"  {bar.time_remaining:.0f} s left"
        self.say(f"{bar.description:44} {done:.0f}/{total:.0f}{left}  {self._text()}")

    def show(self, figures: Mapping[str, float]) -> None:
        """Add figures of the current step to those shown."""
        self._figures |= figures
        self._bars.update(self._step, figures=self._text())

    def _text(self) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in self._figures.items())


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for an experiment tracker that accelerate does not know or that is not installed."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"report_to: unknown tracker {name!r}; choose of {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            raise ConfigError(f"report_to: {name} is not installed; install its package or remove it from report_to")


@contextlib.contextmanager
def tracked(names: Sequence[str], folder: Path, run_name: str) -> Iterator[Callable[..., None]]:
    """Open experiment trackers for one fit and yield a function that logs figures; see `loop.Watch`.

    Args:
        folder: for trackers that write files; each fit has its own folder in it.
    """
    if not names:
        yield lambda done, total, figures: None
        return
    process_state()
    accelerator = Accelerator(log_with=list(names), project_dir=folder / run_name)
    accelerator.init_trackers("dmoerm", init_kwargs={"wandb": {"name": run_name}})
    try:
        yield lambda done, total, figures: accelerator.log(dict(figures), done) if figures else None
    finally:
        for tracker in accelerator.trackers:  # `end_training` would end the communication of the processes too
            tracker.finish()
