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

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dmoerm.evaluation.methods import Array, Method, MethodContext, TrainedMethod, fresh_scorer, register
from dmoerm.evaluation.scored_groups import ScoringBatch
from dmoerm.model.heads import BranchScorer
from dmoerm.training import Run
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.examples import PreferenceExample
from dmoerm.training.phases import apply_base, train_base

Examples = Sequence[PreferenceExample]
SIZE = 5
"""Models in an ensemble; commands set it from `--members`."""
_VARIANCE_WEIGHT = 0.5  # of UWO for best-of-n (arXiv 2310.02743)
_COMBINATIONS = {
    "mean": "their mean",
    "wco": "their worst, after each is centered per prompt (WCO)",
    "uwo": "their mean less half their variance, after each is centered per prompt (UWO)",
}


def _train_warm(context: MethodContext) -> TrainedMethod:
    run, merged = context.run, averaged(context.once(train_members))
    return TrainedMethod(lambda batch: single_rewards(run, merged, batch)[None])


def _train_ensemble(context: MethodContext, bagging: bool) -> TrainedMethod:
    run = context.run
    scorers = train_members(context, bagging=True) if bagging else context.once(train_members)
    center, scale = reward_statistics(run, scorers, context.train)

    def score(batch: ScoringBatch) -> Tensor:
        rows = [single_rewards(run, scorer, batch) for scorer in scorers]
        return (torch.stack(rows) - center[:, None]) / scale[:, None]

    return TrainedMethod(score)


def _combine(combination: str, rewards: Array) -> Array:
    """Combine the members' rewards (k, N), which are centered per prompt: their levels must not decide the worst."""
    centers = rewards.mean(1, keepdims=True)
    centered, mean = rewards - centers, (rewards - centers).mean(0)
    combined = {"mean": mean, "wco": centered.min(0), "uwo": mean - _VARIANCE_WEIGHT * centered.var(0)}
    return combined[combination] + centers.mean()


def train_members(context: MethodContext, bagging: bool = False, size: int | None = None) -> list[BranchScorer]:
    """Train `size` single models on all tasks together.

    Args:
        size: number of models; the default is `SIZE`.
        bagging: each on its own resample of the prompts; otherwise the run's general model is the first, and the others
            differ in the start of the head and the order of the data. An exact fit depends on neither, so the general
            model is then the only member.
    """
    run = context.run
    members = [] if bagging else [run.model.general]
    if not bagging and run.frozen:
        return members
    while len(members) < (size or SIZE):
        name = f"baselines/{'bagged' if bagging else 'member'}{len(members)}"
        start = fresh_scorer(run, name)
        part = _resampled(context.train, run.seed(name)) if bagging else context.train
        state = run.step(
            name,
            lambda folder, s=start, p=part: train_base(run, s, p, context.validation, run.config.phase0, folder),
        )
        apply_base(start, state)
        members.append(start)
    return members


def single_rewards(run: Run, scorer: BranchScorer, batch: ScoringBatch) -> Tensor:
    """Return the rewards (N,) of a single model; a frozen branch's embeddings are the batch's."""
    return scorer.head(batch.embeddings if run.frozen else scorer.embed(batch.hidden))


@torch.no_grad()
def reward_statistics(run: Run, scorers: Sequence[BranchScorer], train: Examples) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (k,) of each member's rewards on the training part."""
    rewards = []
    for scorer in scorers:
        z = base_embeddings(run, scorer, train)
        rewards.append(torch.cat([scorer.head(rows.to(run.model.device)) for rows in z.values()]))
    stacked = torch.stack(rewards)
    return stacked.mean(1), stacked.std(1, correction=0).clamp(min=1e-6)


@torch.no_grad()
def averaged(scorers: Sequence[BranchScorer]) -> BranchScorer:
    """Return one model with the mean of the members' weights; a branch that is the same in all is shared."""
    branch = scorers[0].branch
    shared = all(scorer.branch is branch for scorer in scorers)
    merged = copy.deepcopy(scorers[0], {id(branch): branch} if shared else {})
    states = [(scorer.head if shared else scorer).state_dict() for scorer in scorers]
    for name, tensor in (merged.head if shared else merged).state_dict().items():
        tensor.copy_(torch.stack([state[name].float() for state in states]).mean(0))
    return merged


def _resampled(examples: Examples, seed: int) -> Examples:
    """Draw as many prompts as there are, with replacement, each with all its groups."""
    prompts: dict[str, list[PreferenceExample]] = {}
    for example in examples:
        prompts.setdefault(f"{example.task}\0{example.prompt}", []).append(example)
    groups = list(prompts.values())
    drawn = np.random.default_rng(seed).integers(0, len(groups), len(groups))
    return [example for i in drawn for example in groups[i]]


register(
    *(
        Method(f"{name}_{combination}", f"{description}: {text}", train, partial(_combine, combination))
        for name, description, train in (
            ("ensemble", "single models with other starts and data orders", partial(_train_ensemble, bagging=False)),
            (
                "bagged",
                "single models, each on its own resample of the prompts",
                partial(_train_ensemble, bagging=True),
            ),
        )
        for combination, text in _COMBINATIONS.items()
    ),
    Method("warm", "one model with the ensemble's mean weights (WARM)", _train_warm),
)
