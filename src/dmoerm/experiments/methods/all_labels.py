"""`all_labels`: one model per task, trained on the overall and the capability pairs together.

It sees the same labels as DMoERM and has the size of one task's phase-1 model, so it says what the labels alone are
worth, without experts and aggregator. If the run's aggregator reads the score of such a head, that head is the method.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .method import Method, MethodContext, TrainedMethod
from .registry import register
from .run_models import single_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from ...evaluation.scoring_batch import ScoringBatch
    from ...model.heads import BranchScorer
    from ...training.batches import PreferenceExample


def train_all_labels(context: MethodContext) -> TrainedMethod:
    """Train one model per task; validation is on the overall pairs, as for every model that gives a reward."""
    import torch

    run = context.run
    task_models = {task: run.model.task_model(task) for task in context.data.taxonomy.tasks}
    heads = {task: model.all_labels for task, model in task_models.items() if model.all_labels is not None}
    models = {task: _train(context, task) for task in task_models if task not in heads}

    def score(batch: ScoringBatch) -> Tensor:
        rewards = torch.empty(len(batch.owner), device=batch.owner.device)
        for task in set(batch.tasks):
            rows = [n for n, q in enumerate(batch.owner.tolist()) if batch.tasks[q] == task]
            z = batch.embeddings[rows] if run.frozen else models[task].embed(batch.hidden.select(rows))
            head = heads[task] if task in heads else models[task].head
            rewards[rows] = head(z)
        return rewards[None]

    return TrainedMethod(
        score=score,
        steps=("phase1",) if heads else ("baselines/all_labels/", *(("phase0",) if run.config.warm_start else ())),
        parameters=single_parameters(context) * len(task_models),
        timed=lambda batch: run.model.general.head(batch.embeddings),  # one single model's pass, as for `per_task`
    )


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
        "all_labels",
        "one model per task on overall and capability pairs together, given the task: the same labels as dmoerm",
        "baseline",
        "#b8860b",
        train_all_labels,
    )
)
