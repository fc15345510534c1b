"""Ensembles of single models: mean, worst case (WCO) and mean less variance (UWO), and one model with mean weights.

    ensemble   phase 0 again, with another start of the head and another order of the data (arXiv 2310.02743)
    bagged     the same, each model on its own resample of the prompts: heads on fixed embeddings are convex fits, which
               another start and order hardly change
    warm       one model with the mean of the ensemble's weights (arXiv 2401.12187)

If phase 0 is an exact fit, `ensemble` and `warm` have one member, the general model: such a fit depends neither on its
start nor on the order of the data.

Shapes: k members, N responses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dmoerm.experiments.methods.method import Array, Method, MethodContext, TrainedMethod
from dmoerm.experiments.methods.registry import register
from dmoerm.experiments.methods.run_models import single_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from dmoerm.evaluation.scored_groups import ScoringBatch
    from dmoerm.model.heads import BranchScorer

_UWO_WEIGHT = 0.5  # of best-of-n in the paper
_COMBINATIONS = {
    "mean": "their mean",
    "wco": "their worst, after each is centered per prompt (WCO)",
    "uwo": "their mean less half their variance, after each is centered per prompt (UWO)",
}


def members(context: MethodContext) -> list[BranchScorer]:
    """Train the ensemble's members."""
    from dmoerm.experiments.methods.members import train_members

    return train_members(context)


def train_ensemble(context: MethodContext) -> TrainedMethod:
    """Train members with other starts and data orders."""
    return _ensemble(context, context.once(members), _member_steps(context))


def train_bagged(context: MethodContext) -> TrainedMethod:
    """Train members on resamples of the prompts."""
    from dmoerm.experiments.methods.members import train_members

    return _ensemble(context, train_members(context, bagging=True), ("baselines/bagged",))


def train_warm(context: MethodContext) -> TrainedMethod:
    """Merge the members into one model with their mean weights."""
    from dmoerm.experiments.methods.members import averaged, single_rewards

    run, merged = context.run, averaged(context.once(members))
    return TrainedMethod(
        score=lambda batch: single_rewards(run, merged, batch)[None],
        steps=_member_steps(context),
        parameters=single_parameters(context),
    )


def _member_steps(context: MethodContext) -> tuple[str, ...]:
    """Return the names of the members' steps."""
    return ("phase0", "baselines/member") if len(context.once(members)) > 1 else ("phase0",)


def _ensemble(context: MethodContext, scorers: Sequence[BranchScorer], steps: Sequence[str]) -> TrainedMethod:
    import torch

    from dmoerm.experiments.methods.members import reward_statistics, single_rewards

    run = context.run
    center, scale = reward_statistics(run, scorers, context.train)

    def score(batch: ScoringBatch) -> Tensor:
        rows = [single_rewards(run, scorer, batch) for scorer in scorers]
        return (torch.stack(rows) - center[:, None]) / scale[:, None]

    return TrainedMethod(score=score, steps=steps, parameters=single_parameters(context) * len(scorers))


def _combine(combination: str, rewards: Array) -> Array:
    """Combine k members' rewards (k, N) of the responses to one prompt into rewards (N,); arXiv 2310.02743.

    Each member is centered over the responses first: preferences determine a member's rewards up to a constant per
    prompt, so members' levels must not decide which of them is the worst, or how far they disagree. The mean of the
    centers is added back.

    Args:
        combination: `mean`, `wco` (the worst member) or `uwo` (mean − `_UWO_WEIGHT` · variance).
    """
    centers = rewards.mean(1, keepdims=True)
    centered = rewards - centers
    mean = centered.mean(0)
    combined = {"mean": mean, "wco": centered.min(0), "uwo": mean - _UWO_WEIGHT * centered.var(0)}
    return combined[combination] + centers.mean()


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
