"""The steps of a run as a graph: names, dependencies and functions.

    router ──┬──▶ phase0 ─────────────────────────────┐
             └──▶ phase1/t ──▶ phase2/t ──────────▶ phase3/t     for each task t; with `warm_start`, phase0 ─▶ phase1/t

In one process the steps run in order. On a cluster, a step can start when its dependencies are finished. A finished
step that runs again loads its result from the run's folder into the model and trains nothing.
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
from .expert_step import expert_parts, phase2
from .phases import phase0, phase1, phase3
from .router_step import assign_tasks, train_router
from .steps import Run, step_name


@dataclass
class Training:
    """A run and its examples; the router's step assigns a task to examples that have none."""

    run: Run
    train: Sequence[PreferenceExample]
    validation: Sequence[PreferenceExample]

    def of(self, task: str) -> tuple[list[PreferenceExample], list[PreferenceExample]]:
        """Return a task's training and validation examples. Raises `DataError` if there are none to train on."""
        train, validation = ([e for e in part if e.task == task] for part in (self.train, self.validation))
        if not train:
            raise DataError("no group of the training part has this task", field="task", value=task)
        return train, validation


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: its path under `steps/`.
        needs: names of the steps whose results it reads; they are before it in the graph.
        do: trains it, or loads its result if it is finished.
    """

    name: str
    needs: tuple[str, ...]
    do: Callable[[Training], None]


Engine = Callable[[Run, Splits, Sequence[Step]], None]
"""Computes the results of the steps and stores them in the run's folder."""


def graph(config: Config, taxonomy: Taxonomy) -> list[Step]:
    """Return the steps, each after its dependencies."""
    steps = [Step("router", (), _router), Step("phase0", ("router",), _phase0)]
    for task, definition in taxonomy.tasks.items():
        first = step_name("phase1", task)
        parts = expert_parts(task, list(definition.capabilities), config.experts_per_step)
        steps.append(Step(first, ("router", *["phase0"] * config.warm_start), _of(phase1, task)))
        steps += [Step(part[0], ("router", first), _of(phase2, task, part)) for part in parts.items()]
        steps.append(Step(step_name("phase3", task), ("router", "phase0", first, *parts), _of(phase3, task)))
    return steps


def path_to(name: str, steps: Sequence[Step]) -> list[Step]:
    """Return a step after all its direct and indirect dependencies."""
    names = {name}
    for step in reversed(steps):
        if step.name in names:
            names |= set(step.needs)
    return [step for step in steps if step.name in names]


def _router(training: Training) -> None:
    train_router(training.run, training.train, training.validation)
    training.train = assign_tasks(training.run, training.train)
    training.validation = assign_tasks(training.run, training.validation)


def _phase0(training: Training) -> None:
    phase0(training.run, training.train, training.validation)


def _of(phase: Callable[..., None], task: str, *rest: Any) -> Callable[[Training], None]:
    return lambda training: phase(training.run, task, *training.of(task), *rest)
