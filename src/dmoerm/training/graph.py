"""The steps of a run as a graph: names, dependencies and functions.

    router ──┬──▶ phase0 ─────────────────────────────┐
             └──▶ phase1/t ──▶ phase2/t ──────────▶ phase3/t     for each task t; phase0 ─▶ phase1/t with `warm_start`
                                                                 and with exact heads
    all of them ─▶ routing: how the router's probabilities mix the task models

In one process the steps run in order. On a cluster, a step can start when its dependencies are finished. A finished
step that runs again loads its result from the run's folder into the model and trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..config import Config
from ..data.splits import Splits
from ..taxonomy import Taxonomy
from .expert_step import expert_parts, phase2
from .phases import phase0, phase1, phase3
from .router_step import train_router
from .routing_step import choose_routing
from .steps import Run, Training, step_name


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
    steps = [Step("router", (), train_router), Step("phase0", ("router",), phase0)]
    start = ["phase0"] if config.warm_start or config.phase0.l2 == config.phase1.l2 == "auto" else []
    for task, definition in taxonomy.tasks.items():
        first = step_name("phase1", task)
        parts = expert_parts(task, list(definition.capabilities), config.experts_per_step)
        steps.append(Step(first, ("router", *start), partial(phase1, task=task)))
        steps += [Step(part[0], ("router", first), partial(phase2, task=task, part=part)) for part in parts.items()]
        steps.append(Step(step_name("phase3", task), ("router", "phase0", first, *parts), partial(phase3, task=task)))
    return [*steps, Step("routing", tuple(step.name for step in steps), choose_routing)]


def path_to(name: str, steps: Sequence[Step]) -> list[Step]:
    """Return a step after all its direct and indirect dependencies."""
    names = {name}
    for step in reversed(steps):
        if step.name in names:
            names |= set(step.needs)
    return [step for step in steps if step.name in names]
