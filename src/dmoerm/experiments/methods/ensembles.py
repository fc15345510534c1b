"""Ensembles of single models: mean, worst case (WCO) and mean less variance (UWO), and one model with mean weights.

    ensemble   phase 0 again, with another start of the head and another order of the data (arXiv 2310.02743)
    bagged     the same, each model on its own resample of the prompts: heads on fixed embeddings are convex fits, which
               another start and order hardly change
    warm       one model with the mean of the ensemble's weights (arXiv 2401.12187)

Shapes: k members, N responses.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...evaluation.scoring_batch import ScoringBatch
from ...model.ensemble import combine_members
from ...model.heads import BranchScorer
from ...training import Run
from ...training.embedding import base_embeddings
from .members import Examples, train_members
from .method import Array, Method, MethodContext, TrainedMethod
from .registry import register
from .run_models import single_parameters

_COMBINATIONS = {
    "mean": "their mean",
    "wco": "their worst, after each is centered per prompt (WCO)",
    "uwo": "their mean less half their variance, after each is centered per prompt (UWO)",
}


def members(context: MethodContext) -> list[BranchScorer]:
    """The ensemble's members."""
    return train_members(context)


def train_ensemble(context: MethodContext) -> TrainedMethod:
    """Members with other starts and data orders."""
    return _ensemble(context, context.once(members), ("phase0", "baselines/member"))


def train_bagged(context: MethodContext) -> TrainedMethod:
    """Members on resamples of the prompts."""
    return _ensemble(context, train_members(context, bagging=True), ("baselines/bagged",))


def train_warm(context: MethodContext) -> TrainedMethod:
    """One model with the members' mean weights."""
    run, merged = context.run, averaged(context.once(members))
    return TrainedMethod(
        score=lambda batch: merged.head(batch.embeddings if run.frozen else merged.embed(batch.hidden))[None],
        steps=("phase0", "baselines/member"),
        parameters=single_parameters(context),
    )


def _ensemble(context: MethodContext, scorers: Sequence[BranchScorer], steps: Sequence[str]) -> TrainedMethod:
    run = context.run
    center, scale = _statistics(run, scorers, context.train)

    def score(batch: ScoringBatch) -> Tensor:
        rows = [s.head(batch.embeddings if run.frozen else s.embed(batch.hidden)) for s in scorers]
        return (torch.stack(rows) - center[:, None]) / scale[:, None]

    return TrainedMethod(score=score, steps=steps, parameters=single_parameters(context) * len(scorers))


@torch.no_grad()
def _statistics(run: Run, scorers: Sequence[BranchScorer], train: Examples) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (k,) of each member's rewards on the training part: they get one unit."""
    rewards = []
    for scorer in scorers:
        z = base_embeddings(run, scorer, train)
        rewards.append(torch.cat([scorer.head(rows.to(run.model.device)) for rows in z.values()]))
    stacked = torch.stack(rewards)
    return stacked.mean(1), stacked.std(1, correction=0).clamp(min=1e-6)


@torch.no_grad()
def averaged(scorers: Sequence[BranchScorer]) -> BranchScorer:
    """One model with the mean of the members' weights; a branch that is the same in all is shared."""
    branch = scorers[0].branch
    shared = all(scorer.branch is branch for scorer in scorers)
    merged = copy.deepcopy(scorers[0], {id(branch): branch} if shared else {})
    states = [(scorer.head if shared else scorer).state_dict() for scorer in scorers]
    for name, tensor in (merged.head if shared else merged).state_dict().items():
        tensor.copy_(torch.stack([state[name].float() for state in states]).mean(0))
    return merged


def _combine(combination: str, rewards: Array) -> Array:
    return combine_members(torch.from_numpy(rewards), combination).numpy()


register(
    *(
        Method(
            f"{name}_{combination}",
            f"{description}: {text}",
            "baseline",
            color,
            train,
            functools.partial(_combine, combination),
        )
        for name, description, color, train in (
            ("ensemble", "single models with other starts and data orders", "#009e73", train_ensemble),
            ("bagged", "single models, each on its own resample of the prompts", "#56b4e9", train_bagged),
        )
        for combination, text in _COMBINATIONS.items()
    ),
    Method("warm", "one model with the ensemble's mean weights (WARM)", "baseline", "#cc79a7", train_warm),
)
