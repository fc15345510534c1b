"""How much each score contributes to a reward; the contributions sum to the unbounded reward.

    linear aggregator    weight_i · (score_i − mean_i) / scale_i
    the paper's MLP      the Shapley value of embedding i; without i, it is the training part's mean (heads.py)
    several models       each model's contributions, times its share in the mixture

All are in the reward's unit, relative to the training part's mean. What then remains of a reward is a constant: the
model's value at the mean less its mean value, the center. It is split equally among the scores that have a weight. For
the MLP, this gives the Shapley values of the game in which an unknown response has the reward of an average one, 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from .router import Choice

OTHER_TASKS = "other_tasks"
"""The contribution of the other tasks' models, where models are mixed."""


class Source(NamedTuple):
    """A model's scores of one response, on the host."""

    reward: float  # calibrated
    temperature: float
    contributions: Mapping[str, float]  # up to a constant; nan where they are unknown


def contributions(
    reward: float, choice: Choice, sources: Mapping[str | None, Source], scale: float
) -> dict[str, float]:
    """Return score → contribution to a response's unbounded reward; empty if a model's contributions are unknown.

    A score of `choice.task` without weight has 0.

    Args:
        choice: what gives the reward.
        sources: task (None: the general model) → its scores of the response; all tasks that `choice` names.
        scale: the routed calibration's scale, by which mixed rewards are divided.
    """
    named = dict.fromkeys(sources[choice.task].contributions, 0.0)
    for task, share in choice.shares.items():
        source = sources[task]
        factor = share / (source.temperature * scale) if choice.mixed else 1.0
        whole = {"general" if task is None else OTHER_TASKS: source.reward}
        for name, value in (whole if task is None or task != choice.task else source.contributions).items():
            named[name] = named.get(name, 0.0) + factor * value
    weighted = [name for name, value in named.items() if value != 0] or list(named)  # of a response at the mean: all
    constant = (reward - sum(named.values())) / len(weighted)
    named |= {name: named[name] + constant for name in weighted}
    return named if all(map(math.isfinite, named.values())) else {}
