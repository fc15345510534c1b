"""Several models' rewards as one: their mean, worst (WCO), or mean less their variance (UWO); arXiv 2310.02743.

Models that were trained apart mean different things by a reward of 1, so before they are combined

    scale     each model's rewards are divided by its temperature: σ of a difference is then its probability, whichever
              model's it is. Times a common temperature (the models' harmonic mean) they are rewards again, of standard
              deviation 1 or so, in which the variance of UWO has the weight that it was given for
    offset    where models are held against each other (worst, variance), each one's mean over the prompt's responses is
              taken off: only differences within a prompt mean something, and one model's level is not another's

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


def combined(rewards: Tensor, weight: float = UWO_WEIGHT) -> dict[str, Tensor]:
    """(k, N) → `mean`, `wco` (min) and `uwo` (mean − weight · variance), each (N,)."""
    mean = rewards.mean(0)
    return {"mean": mean, "wco": rewards.amin(0), "uwo": mean - weight * rewards.var(0, correction=0)}


def joined(members: Sequence[Sequence[Score]], how: str) -> list[Score]:
    """Combine the scores that several models give the responses to one prompt.

    `reward` is the combination in the common unit; by `mean`, σ((reward_a − reward_b) / temperature) has the mean of
    the models' log-odds. `task` is the one that most of them scored as (of equally many the first one's);
    `capabilities` are the mean over those models, of the names that all of these have; `route` is the mean over all.
    `uncertainty` is the models' standard deviation, in the reward's unit; None for a single response, where every
    combination is the mean. A response is `truncated` if it was for any model. Unbounded rewards are combined; an
    empty response has no part in it and keeps `MIN_REWARD`.

    Args:
        members: each model's scores, in the responses' order.
        how: `mean`, `wco` or `uwo`.
    """
    firsts = [scores[0] for scores in members]
    temperature = harmonic_mean([first.temperature for first in firsts])
    tasks = [first.task for first in firsts]
    task = max(tasks, key=tasks.count)
    routed = dict.fromkeys(name for first in firsts for name in first.route)
    route = {name: fmean(first.route.get(name, 0.0) for first in firsts) for name in routed}
    columns = list(zip(*members, strict=True))
    with_text = [column for column in columns if not column[0].empty]
    rewards, spread = _rewards(with_text, temperature, how) if with_text else ([], [])
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
    """The mean over models of each capability that all of them have."""
    names = [name for name in scores[0].capabilities if all(name in score.capabilities for score in scores)]
    return {name: fmean(score.capabilities[name] for score in scores) for name in names}


def _rewards(columns: Sequence[Sequence[Score]], temperature: float, how: str) -> tuple[list[float], list[float]]:
    """Return the combined rewards and the members' standard deviations, one per response.

    Args:
        columns: for each response the members' scores.
    """
    rows = [[unbound_reward(score.reward) * temperature / score.temperature for score in column] for column in columns]
    rewards = torch.tensor(rows, dtype=torch.float64).T
    centers = rewards.mean(1, keepdim=True)
    values = combined(rewards - centers)[how] + centers.mean()
    return [bound_reward(value) for value in values.tolist()], (rewards - centers).std(0, correction=0).tolist()
