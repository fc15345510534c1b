"""Single models: on all labels, and with the uncertainty of the last layer; and a bound from people's grades.

all_labels_general   one model for all tasks on the overall and the capability pairs of all tasks together: what the
                     labels alone are worth, without tasks, experts and aggregator
laplace              the single model's calibrated reward minus one standard deviation under the Laplace posterior of
                     its head's weights (Yang et al. 2024, arXiv 2402.13210)
human_grades         people's own capability grades in place of the experts' scores: what perfect experts would give
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from dmoerm.data.groups import overall_from_capabilities
from dmoerm.evaluation.methods import Method, MethodContext, TrainedMethod, fresh_scorer, joined_pairs, register
from dmoerm.evaluation.scored_groups import ScoringBatch
from dmoerm.model.heads import BranchScorer
from dmoerm.schema import Group
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.exact_solver import exact_metrics, fit_all_labels_head, head_state
from dmoerm.training.phases import apply_base, train_base
from dmoerm.training.steps import State, StepMetrics
from evidence.methods.ensembles import single_rewards

_ALL_LABELS = "baselines/all_labels_general"


def train_all_labels_general(context: MethodContext) -> TrainedMethod:
    """Train the model; validation is on the overall pairs, as for every model that gives a reward."""
    run, scorer = context.run, fresh_scorer(context.run, _ALL_LABELS)
    apply_base(scorer, run.step(_ALL_LABELS, lambda folder: _train_all_labels_general(context, scorer, folder)))
    return TrainedMethod(lambda batch: single_rewards(run, scorer, batch)[None])


def _train_all_labels_general(context: MethodContext, start: BranchScorer, folder: Path) -> tuple[State, StepMetrics]:
    """Train as phase 0 does on its labels; an exact head has the normalizer of the general model."""

    run = context.run
    if not run.frozen:
        train = joined_pairs(context.train)
        return train_base(run, start, train, context.validation, run.config.phase0, folder)
    head = copy.deepcopy(run.model.general.head)
    # A name may be a capability of several tasks: each name is listed once, so that no pair counts twice.
    names = tuple(dict.fromkeys(name for e in context.train for name in e.pairs if name is not None))
    vectors = base_embeddings(run, run.model.general, context.train)
    fit = fit_all_labels_head(head, names, context.train, vectors, run.config.seed)
    return head_state(head, fit), exact_metrics([fit])


def _train_laplace(context: MethodContext) -> TrainedMethod | None:
    """Use the run's phase 0; None if its head has no posterior."""
    model = context.run.model
    if not model.general_posterior.known:
        return None

    def score(batch: ScoringBatch) -> Tensor:
        reward = model.general_calibration(batch.output.general)
        deviation = model.general_posterior.deviation(model.general.head.normalizer(batch.embeddings.float()))
        return (reward - deviation)[None]

    return TrainedMethod(score)


def _train_human_grades(context: MethodContext) -> TrainedMethod | None:
    """Average standardized grades; None if no training group has grades."""
    training = context.data.train

    def score(batch: ScoringBatch) -> Tensor:
        groups = [
            query.model_copy(update={"scores": None, "ranks": None})
            if isinstance(query, Group) and query.capabilities
            else None
            for query in batch.groups
        ]
        graded = iter(overall_from_capabilities([group for group in groups if group], training))
        averaged = [next(graded).scores if group else None for group in groups]
        rows = [row or (0.0,) * len(query.responses) for row, query in zip(averaged, batch.groups, strict=True)]
        return torch.tensor([value for row in rows for value in row], device=batch.owner.device)[None]

    return TrainedMethod(score) if any(group.capabilities for group in training) else None


register(
    Method(
        "all_labels_general",
        "one model for all tasks on overall and capability pairs together: the same labels as dmoerm",
        train_all_labels_general,
    ),
    Method(
        "laplace",
        "the single model minus one standard deviation under the Laplace posterior of its last layer",
        _train_laplace,
    ),
    Method(
        "human_grades",
        "the mean of people's capability grades of the held-out responses: what perfect experts would give (all of it "
        "where the overall score is derived from them); groups without a grade for each response are ties",
        _train_human_grades,
        default=False,
    ),
)
