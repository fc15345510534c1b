"""Combine several models' rewards: their mean, worst (WCO), or mean minus variance (UWO); arXiv 2310.02743.

Models that were trained separately differ in the unit and level of their rewards. Before they are combined:

    scale     Each model's rewards are divided by its temperature, so that σ of a difference is a probability for every
              model, and multiplied by a common temperature (the models' harmonic mean). Their standard deviation is
              then about 1 again, the unit for which the weight of UWO's variance is given.
    offset    Each model's mean over the prompt's responses is subtracted before models are compared with each other
              (worst, variance), because only differences within a prompt have a meaning.

Shapes: k members, N responses of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, harmonic_mean

import torch
from torch import Tensor

from ..scores import MIN_REWARD, Score, bound_reward, unbound_reward

UWO_WEIGHT = 0.5
"""λ of UWO for best-of-n (arXiv 2310.02743)."""


def combine_members(rewards: Tensor, combination: str, weight: float = UWO_WEIGHT) -> Tensor:
    """Combine k members' rewards (k, N) of the responses to one prompt into rewards (N,).

    Each member is centered over the responses first: preferences determine a member's rewards up to a constant per
    prompt, so members' levels must not decide which of them is the worst, or how far they disagree. The mean of the
    centers is added back.

    Args:
        combination: `mean`, `wco` (the worst member) or `uwo` (mean − weight · variance).
    """
    centers = rewards.mean(1, keepdim=True)
    centered = rewards - centers
    mean = centered.mean(0)
    combined = {
        "mean": mean,
        "wco": centered.amin(0),
        "uwo": mean - weight * centered.var(0, correction=0),
    }
    return combined[combination] + centers.mean()


def combine_scores(members: Sequence[Sequence[Score]], combination: str) -> list[Score]:
    """Combine the scores that several models give to the responses to one prompt.

    Args:
        members: each model's scores, in the order of the responses.
        combination: `mean`, `wco` or `uwo`.

    Returns:
        One score per response. `reward` is the combination of the unbounded rewards in the common unit, bounded again;
        with `mean`, σ((reward_a − reward_b) / temperature) has the mean of the models' log-odds. `task` is the task
        that most models chose (in a tie, the first model's). `capabilities` are means over the models that chose it,
        for the names that all of them have. `route` is the mean over all models. `uncertainty` is the standard
        deviation over models in the reward's unit, or None for a single response, for which all combinations are equal.
        `truncated` is true if it is for any model. An empty response is not combined and keeps `MIN_REWARD`.
    """
    firsts = [scores[0] for scores in members]
    temperature = harmonic_mean([first.temperature for first in firsts])
    tasks = [first.task for first in firsts]
    task = max(tasks, key=tasks.count)
    routed = dict.fromkeys(name for first in firsts for name in first.route)
    route = {name: fmean(first.route.get(name, 0.0) for first in firsts) for name in routed}
    columns = list(zip(*members, strict=True))
    with_text = [column for column in columns if not column[0].empty]
    rewards, spread = _rewards(with_text, temperature, combination) if with_text else ([], [])
    values = iter(zip(rewards, spread, strict=True))
    scores = []
    for column in columns:
        reward, deviation = (MIN_REWARD, None) if column[0].empty else next(values)
        scores.append(
            Score(
                reward=reward,
                task=task,
                route=route,
                capabilities=_capabilities([score for score in column if score.task == task]),
                uncertainty=deviation if len(with_text) > 1 else None,
                temperature=temperature,
                truncated=any(score.truncated for score in column),
            )
        )
    return scores


def _capabilities(scores: Sequence[Score]) -> dict[str, float]:
    """Return the mean over models of each capability that all of them have."""
    names = [name for name in scores[0].capabilities if all(name in score.capabilities for score in scores)]
    return {name: fmean(score.capabilities[name] for score in scores) for name in names}


def _rewards(
    columns: Sequence[Sequence[Score]], temperature: float, combination: str
) -> tuple[list[float], list[float]]:
    """Return the combined rewards and the members' standard deviations, one per response.

    Args:
        columns: for each response the members' scores.
    """
    rows = [[unbound_reward(score.reward) * temperature / score.temperature for score in column] for column in columns]
    rewards = torch.tensor(rows, dtype=torch.float64).T
    spread = (rewards - rewards.mean(1, keepdim=True)).std(0, correction=0)
    return [bound_reward(value) for value in combine_members(rewards, combination).tolist()], spread.tolist()
