"""Fit center, scale and temperature of a task's rewards.

    reward = (raw reward − center) / scale                     mean 0, standard deviation 1 over the training part
    P(a better than b) = σ((reward_a − reward_b) / T)          T fits the held-out pairs

Raw rewards of different tasks have arbitrary units; with this, rewards and win probabilities are comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ..model.task_model import Calibration
from .batches import PreferenceExample

_PRIOR_WIDTH = 0.5  # standard deviation of log T


def calibrate(
    calibration: Calibration,
    rewards: Mapping[str, Tensor],
    train: Sequence[PreferenceExample],
    validation: Sequence[PreferenceExample],
) -> None:
    """Set center and scale from the rewards of all examples, and the temperature from the validation pairs.

    Without validation pairs, the temperature is fitted on training pairs.

    Args:
        rewards: key of an example → raw rewards (N,); examples without rewards are ignored.
    """
    known = torch.cat([rewards[e.key] for e in (*train, *validation) if e.key in rewards])
    calibration.center.fill_(float(known.mean()))
    calibration.scale.fill_(max(float(known.std(correction=0)), 1e-6))
    held_out = [e for e in validation if e.key in rewards and e.pairs.get(None)]
    margins, weights = _margins(held_out or [e for e in train if e.key in rewards], rewards)
    if len(margins):
        calibration.temperature.fill_(temperature(margins / float(calibration.scale), weights))


def _margins(examples: Sequence[PreferenceExample], rewards: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    rows = [
        (float(rewards[e.key][pair.better] - rewards[e.key][pair.worse]), pair.weight / len(pairs))
        for e in examples
        if (pairs := e.pairs.get(None))
        for pair in pairs
    ]
    return np.array([margin for margin, _ in rows]), np.array([weight for _, weight in rows])


def temperature(margins: np.ndarray, weights: np.ndarray) -> float:
    """Return argmin over T in [0.05, 20] of Σ weight · −log σ(margin / T) + log(T)² / (2 s²), s = 0.5.

    The second term is a prior centered at T = 1. Rewards have standard deviation 1, and at T = 1 the predicted
    probabilities are close to how often people agree with a usable reward model. Without the prior, a few held-out
    groups that happen to disagree with the model would push T to its bound, so that every pair is predicted a tie.

    Args:
        margins: (P,), reward of the better response − reward of the worse, in units of `scale`.
        weights: (P,), the pair's weight / number of the group's pairs.
    """

    def loss(log_t: float) -> float:
        misfit = float((np.logaddexp(0, -margins / np.exp(log_t)) * weights).sum())
        return misfit + log_t**2 / (2 * _PRIOR_WIDTH**2)

    result: Any = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(result.x))
