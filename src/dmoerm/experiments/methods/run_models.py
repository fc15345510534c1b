"""The methods that every trained model contains: the single model, one model per task, and DMoERM itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .method import Method, MethodContext, TrainedMethod
from .registry import register

if TYPE_CHECKING:
    from torch import nn

_ALL_STEPS = ("router", "phase0", "phase1", "phase2", "phase3")


def train_general(context: MethodContext) -> TrainedMethod:
    """Use the run's phase 0."""
    model = context.run.model
    return TrainedMethod(
        score=lambda batch: batch.output.general[None],
        steps=("phase0",),
        parameters=single_parameters(context),
        timed=lambda batch: model.general.head(batch.embeddings),
    )


def train_per_task(context: MethodContext) -> TrainedMethod:
    """Use the run's phase 1. A pass costs what a pass of the single model costs, which is what is timed."""
    model = context.run.model
    return TrainedMethod(
        score=lambda batch: batch.per_task[None],
        steps=("phase1",),
        parameters=single_parameters(context) * len(context.data.taxonomy.tasks),
        timed=lambda batch: model.general.head(batch.embeddings),
    )


def train_dmoerm(context: MethodContext) -> TrainedMethod:
    """Use the whole run."""
    model = context.run.model
    tasks = [model.task_model(task) for task in context.data.taxonomy.tasks]
    parts = [model.router, *(part for task in tasks for part in (task.experts, task.aggregator))]
    return TrainedMethod(
        score=lambda batch: batch.output.reward[None],
        steps=_ALL_STEPS,
        parameters=single_parameters(context) * (1 + len(tasks)) + sum(map(count_parameters, parts)),
        timed=lambda batch: model.rewards(batch.hidden, batch.chosen),
    )


def single_parameters(context: MethodContext) -> int:
    """Count the trained parameters of one branch and head."""
    general = context.run.model.general
    return count_parameters(general.head) + (0 if context.run.frozen else count_parameters(general.branch))


def count_parameters(module: nn.Module) -> int:
    """Count all parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


register(
    Method("general", "one model trained on all tasks: the single reward model", "run", "#333333", train_general),
    Method("per_task", "one model per task, given the task", "run", "#e69f00", train_per_task),
    Method(
        "dmoerm",
        "router, experts and aggregator end to end: the router alone chooses the task",
        "run",
        "#0066b3",
        train_dmoerm,
    ),
)
