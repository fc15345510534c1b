"""`all_labels_general`: one model for all tasks, trained on the overall and the capability pairs of all tasks together.

It sees the same labels as DMoERM and has the size of the general model, so it says what the labels alone are worth,
without tasks, experts and aggregator.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from dmoerm.experiments.methods.method import Method, MethodContext, TrainedMethod
from dmoerm.experiments.methods.registry import register
from dmoerm.experiments.methods.run_models import single_parameters

if TYPE_CHECKING:
    from dmoerm.model.heads import BranchScorer
    from dmoerm.training.steps import State, StepMetrics

_STEP = "baselines/all_labels_general"


def train_all_labels_general(context: MethodContext) -> TrainedMethod:
    """Train the model; validation is on the overall pairs, as for every model that gives a reward."""
    from dmoerm.experiments.methods.members import fresh_scorer, single_rewards
    from dmoerm.training.phases import apply_base

    run, scorer = context.run, fresh_scorer(context.run, _STEP)
    apply_base(scorer, run.step(_STEP, lambda folder: _train(context, scorer, folder)))
    return TrainedMethod(
        score=lambda batch: single_rewards(run, scorer, batch)[None],
        steps=(_STEP,),
        parameters=single_parameters(context),
    )


def _train(context: MethodContext, start: BranchScorer, folder: Path) -> tuple[State, StepMetrics]:
    """Train as phase 0 does on its labels; an exact head has the normalizer of the general model."""
    from dmoerm.experiments.methods.all_labels import joined_pairs
    from dmoerm.experiments.methods.members import has_exact_head
    from dmoerm.training.embedding import base_embeddings
    from dmoerm.training.exact_solver import exact_metrics, fit_all_labels_head, head_state
    from dmoerm.training.phases import train_base

    run = context.run
    if not has_exact_head(run):
        train = joined_pairs(context.train)
        return train_base(run, start, train, context.validation, run.config.phase0, folder)
    head = copy.deepcopy(run.model.general.head)
    # A name may be a capability of several tasks: each name is listed once, so that no pair counts twice.
    names = tuple(dict.fromkeys(name for e in context.train for name in e.pairs if name is not None))
    vectors = base_embeddings(run, run.model.general, context.train)
    fit = fit_all_labels_head(head, names, context.train, vectors, run.config.seed)
    return head_state(head, fit), exact_metrics([fit])


register(
    Method(
        "all_labels_general",
        "one model for all tasks on overall and capability pairs together: the same labels as dmoerm",
        "baseline",
        "#6b8e23",
        train_all_labels_general,
    )
)
