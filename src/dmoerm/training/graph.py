"""The steps of a run as a graph: which there are, what each needs, what it does.

    router ──┬──▶ phase0 ─────────────────────────────┐
             └──▶ phase1/t ──▶ phase2/t ──────────▶ phase3/t     for each task t; with `warm_start`, phase0 ─▶ phase1/t

Within a process the steps are gone over in order. Elsewhere each may be done as soon as those that it needs are: a step
that is gone over again puts in place what it left in the run's folder, and trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..data.splits import Splits
from ..errors import DataError
from ..taxonomy import Taxonomy
from .batches import PreferenceExample
from .experts import expert_parts, phase2
from .phases import phase0, phase1, phase3
from .router import assign_tasks, train_router
from .steps import Run, step_name


@dataclass
class Training:
    """A run and its examples; the router's step gives a task to those that name none."""

    run: Run
    train: Sequence[PreferenceExample]
    validation: Sequence[PreferenceExample]

    def of(self, task: str) -> tuple[list[PreferenceExample], list[PreferenceExample]]:
        """A task's training and validation examples. Raises `DataError` where it has none to train on."""
        train, validation = ([e for e in part if e.task == task] for part in (self.train, self.validation))
        if not train:
            raise DataError("no group of the training part has this task", field="task", value=task)
        return train, validation


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: as of its folder under `steps/`.
        needs: the steps whose results it reads; they stand before it in the graph.
        do: trains it or, where it is finished, puts its result in place.
    """

    name: str
    needs: tuple[str, ...]
    do: Callable[[Training], None]


Engine = Callable[[Run, Splits, Sequence[Step]], None]
"""Sees to it that the steps' results lie in the run's folder."""


def graph(config: Config, taxonomy: Taxonomy) -> list[Step]:
    """The steps, each after those that it needs."""
    found = [Step("router", (), _router), Step("phase0", ("router",), _phase0)]
    for task, about in taxonomy.tasks.items():
        first = step_name("phase1", task)
        parts = expert_parts(task, list(about.capabilities), config.experts_per_step)
        found.append(Step(first, ("router", *["phase0"] * config.warm_start), _of(phase1, task)))
        found += [Step(part[0], ("router", first), _of(phase2, task, part)) for part in parts.items()]
        found.append(Step(step_name("phase3", task), ("router", "phase0", first, *parts), _of(phase3, task)))
    return found


def path_to(name: str, steps: Sequence[Step]) -> list[Step]:
    """A step after all that it needs, directly or through others."""
    wanted = {name}
    for step in reversed(steps):
        if step.name in wanted:
            wanted |= set(step.needs)
    return [step for step in steps if step.name in wanted]


def _router(training: Training) -> None:
    train_router(training.run, training.train, training.validation)
    training.train = assign_tasks(training.run, training.train)
    training.validation = assign_tasks(training.run, training.validation)


def _phase0(training: Training) -> None:
    phase0(training.run, training.train, training.validation)


def _of(phase: Callable[..., None], task: str, *rest: Any) -> Callable[[Training], None]:
    return lambda training: phase(training.run, task, *training.of(task), *rest)
