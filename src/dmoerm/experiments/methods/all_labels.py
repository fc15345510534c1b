"""`all_labels`: one model per task, trained on the overall and the capability pairs together.

It sees the same labels as DMoERM and has the size of one task's phase-1 model, so it says what the labels alone are
worth, without experts and aggregator. If the run's aggregator reads the score of such a head, that head is the method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .method import Method, MethodContext, TrainedMethod
from .registry import register
from .run_models import by_task, stored_heads

if TYPE_CHECKING:
    from ...evaluation.scored_groups import ScoringBatch
    from ...model.heads import BranchScorer
    from ...training.batches import PreferenceExample


def train_all_labels(context: MethodContext) -> TrainedMethod:
    """Train one model per task, and score with the task of the group."""
    return _all_labels(context, lambda batch: batch.tasks)


def train_all_labels_routed(context: MethodContext) -> TrainedMethod:
    """Train one model per task, and score with the router's likeliest task."""
    return _all_labels(context, lambda batch: batch.likeliest, ("router",))


def _all_labels(
    context: MethodContext, tasks: Callable[[ScoringBatch], Sequence[str]], routed_by: Sequence[str] = ()
) -> TrainedMethod:
    run = context.run
    if all(run.model.task_model(task).all_labels is not None for task in context.data.taxonomy.tasks):
        return by_task(context, tasks, stored_heads(run, "all_labels"), steps=(*routed_by, "phase1"))
    scorers = context.once(_scorers)
    steps = (*routed_by, "baselines/all_labels/", *(("phase0",) if run.config.warm_start else ()))
    heads = {task: scorer.head for task, scorer in scorers.items()} if run.frozen else None
    return by_task(context, tasks, heads, scorers, steps)


def _scorers(context: MethodContext) -> dict[str, BranchScorer]:
    """Train the models; validation is on the overall pairs, as for every model that gives a reward."""
    return {task: _train(context, task) for task in context.data.taxonomy.tasks}


def _train(context: MethodContext, task: str) -> BranchScorer:
    from ...training.phases import apply_base, train_base
    from ...training.steps import step_name
    from .members import fresh_scorer

    run, name = context.run, step_name("baselines/all_labels", task)
    scorer = fresh_scorer(run, name)
    if run.config.warm_start:
        scorer.head.load_state_dict(run.model.general.head.state_dict())
        if not run.frozen:
            scorer.branch.load_state_dict(copy.deepcopy(run.model.general.branch.state_dict()))
    task_examples, validation = ([e for e in part if e.task == task] for part in (context.train, context.validation))
    train, step, fresh = joined_pairs(task_examples), run.config.phase1, run.frozen or not run.config.warm_start
    state = run.step(name, lambda folder: train_base(run, scorer, train, validation, step, folder, fresh))
    apply_base(scorer, state)
    return scorer


def joined_pairs(examples: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    """Return the examples with their overall and capability pairs as one list of overall pairs."""
    return [
        example.with_pairs({None: [pair for pairs in example.pairs.values() for pair in pairs]}) for example in examples
    ]


register(
    Method(
        "all_labels_routed",
        "one model per task on overall and capability pairs; the router chooses the likeliest task",
        "baseline",
        "#8a6508",
        train_all_labels_routed,
    ),
    Method(
        "all_labels",
        "oracle: one model per task on overall and capability pairs, given the task: the same labels as dmoerm",
        "baseline",
        "#b8860b",
        train_all_labels,
    ),
)
