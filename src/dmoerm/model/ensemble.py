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

from ..scores import Score

UWO_WEIGHT = 0.5
"""λ of UWO for best-of-n (arXiv 2310.02743)."""


def combined(rewards: Tensor, weight: float = UWO_WEIGHT) -> dict[str, Tensor]:
    """(k, N) → `mean`, `wco` (min) and `uwo` (mean − weight · variance), each (N,)."""
    mean = rewards.mean(0)
    return {"mean": mean, "wco": rewards.amin(0), "uwo": mean - weight * rewards.var(0, correction=0)}


def joined(members: Sequence[Sequence[Score]], how: str) -> list[Score]:
    """What several models say of one prompt's responses, as one model would say it.

    `reward` is the combination in the common unit; by `mean`, σ((reward_a − reward_b) / temperature) has the mean of
    the models' log-odds. `task` is the one that most of them scored as (of equally many the first one's);
    `capabilities` are the mean over those models, of the names that all of these have; `route` is the mean over all.
    `uncertainty` is the models' standard deviation, in the reward's unit; None for a single response, of which it says
    nothing, and which every combination gives the mean.

    Args:
        members: each model's scores, in the responses' order.
        how: `mean`, `wco` or `uwo`.
    """
    firsts = [scores[0] for scores in members]
    temperature = harmonic_mean([first.temperature for first in firsts])
    rewards, spread = _rewards(members, temperature, how)
    tasks = [first.task for first in firsts]
    task = max(tasks, key=tasks.count)
    agreeing = [scores for scores in members if scores[0].task == task]
    names = [name for name in agreeing[0][0].capabilities if all(name in each[0].capabilities for each in agreeing)]
    routed = dict.fromkeys(name for first in firsts for name in first.route)
    route = {name: fmean(first.route.get(name, 0.0) for first in firsts) for name in routed}
    return [
        Score(
            reward=reward,
            task=task,
            route=route,
            capabilities={name: fmean(each[n].capabilities[name] for each in agreeing) for name in names},
            uncertainty=spread[n] if len(rewards) > 1 else None,
            temperature=temperature,
        )
        for n, reward in enumerate(rewards)
    ]


def _rewards(members: Sequence[Sequence[Score]], temperature: float, how: str) -> tuple[list[float], list[float]]:
    """The combined rewards and the members' standard deviation, one a response."""
    rows = [[score.reward * temperature / score.temperature for score in scores] for scores in members]
    rewards = torch.tensor(rows, dtype=torch.float64)
    centres = rewards.mean(1, keepdim=True)
    found = combined(rewards - centres)[how] + centres.mean()
    return found.tolist(), (rewards - centres).std(0, correction=0).tolist()
