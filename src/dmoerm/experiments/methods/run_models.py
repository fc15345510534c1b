"""The methods that every trained model contains: the single model, one model per task, and DMoERM itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .method import Method, MethodContext, TrainedMethod
from .registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...evaluation.scored_groups import ScoringBatch
    from ...model.heads import BranchScorer, Head
    from ...training import Run

_ALL_STEPS = ("router", "phase0", "phase1", "phase2", "phase3", "routing")


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
    """Use the run's phase 1, with the task of the group."""
    if not context.run.frozen:
        return _as_single(context, lambda batch: batch.per_task[None], ("phase1",))
    return by_task(context, lambda batch: batch.tasks, stored_heads(context.run, "head"))


def train_per_task_routed(context: MethodContext) -> TrainedMethod:
    """Use the run's phase 1, with the router's likeliest task."""
    steps = ("router", "phase1")
    if not context.run.frozen:
        return _as_single(context, lambda batch: batch.per_task_routed[None], steps)
    return by_task(context, lambda batch: batch.likeliest, stored_heads(context.run, "head"), steps=steps)


def by_task(
    context: MethodContext,
    tasks: Callable[[ScoringBatch], Sequence[str]],
    heads: Mapping[str, nn.Module] | None = None,
    scorers: Mapping[str, BranchScorer] | None = None,
    steps: Sequence[str] = ("phase1",),
) -> TrainedMethod:
    """Return one model per task.

    Args:
        tasks: the task by which each prompt's responses are scored.
        heads: task → head on the shared branch; None: `scorers`.
        scorers: task → branch and head.
        steps: the steps of the run that train them.
    """

    def score(batch: ScoringBatch) -> Tensor:
        by_prompt, rewards = tasks(batch), batch.embeddings.new_empty(len(batch.owner)).float()
        for task in dict.fromkeys(by_prompt):
            rows = [n for n, q in enumerate(batch.owner.tolist()) if by_prompt[q] == task]
            if heads is not None:
                rewards[rows] = heads[task](batch.embeddings[rows])
            else:
                assert scorers is not None
                rewards[rows] = scorers[task](batch.hidden.select(rows))
        return rewards[None]

    return _as_single(context, score, steps)


def _as_single(context: MethodContext, score: Callable[[ScoringBatch], Tensor], steps: Sequence[str]) -> TrainedMethod:
    """Return a method of one model per task. A pass costs what the single model's does, which is what is timed."""
    model = context.run.model
    return TrainedMethod(
        score=score,
        steps=steps,
        parameters=single_parameters(context) * len(context.data.taxonomy.tasks),
        timed=lambda batch: model.general.head(batch.embeddings),
    )


def stored_heads(run: Run, prefix: str) -> dict[str, Head]:
    """Return task → head of the step `phase1`, which the step `routing` may have replaced in the model.

    Args:
        prefix: of the names of the head's tensors in the step's state.
    """
    from ...training.steps import step_name

    heads: dict[str, Head] = {}
    for task in run.model.config.tasks:
        state, start = run.stored(step_name("phase1", task)), f"{prefix}."
        heads[task] = copy.deepcopy(run.model.task_model(task).base.head)
        heads[task].load_state_dict({n.removeprefix(start): t for n, t in state.items() if n.startswith(start)})
    return heads


def train_dmoerm(context: MethodContext) -> TrainedMethod:
    """Use the whole run."""
    model = context.run.model
    tasks = [model.task_model(task) for task in context.data.taxonomy.tasks]
    parts = [model.router, *(part for task in tasks for part in (task.experts, task.aggregator))]
    return TrainedMethod(
        score=lambda batch: batch.output.reward[None],
        steps=_ALL_STEPS,
        parameters=single_parameters(context) * (1 + len(tasks)) + sum(map(count_parameters, parts)),
        timed=lambda batch: model.rewards(batch.hidden, batch.choices),
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
    Method(
        "per_task_routed",
        "one model per task; the router chooses the likeliest task",
        "run",
        "#cc7a00",
        train_per_task_routed,
    ),
    Method("per_task", "oracle: one model per task, given the task", "run", "#e69f00", train_per_task),
    Method(
        "dmoerm",
        "router, experts and aggregator end to end: the router alone chooses the task",
        "run",
        "#0066b3",
        train_dmoerm,
    ),
)
