"""Centre, scale and temperature of a task's rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ..model.task_model import Calibration
from .batches import PreferenceExample

_PRIOR_WIDTH = 0.5  # of log T


def calibrate(
    calibration: Calibration,
    rewards: Mapping[str, Tensor],
    train: Sequence[PreferenceExample],
    validation: Sequence[PreferenceExample],
) -> None:
    """Rewards get mean 0 and standard deviation 1 over the training part; the temperature fits the held-out pairs.

    Args:
        rewards: an example's key → raw rewards (N,); examples that are not in it are passed over.
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
        (float(rewards[e.key][pair.better] - rewards[e.key][pair.worse]), 1 / len(pairs))
        for e in examples
        if (pairs := e.pairs.get(None))
        for pair in pairs
    ]
    return np.array([margin for margin, _ in rows]), np.array([weight for _, weight in rows])


def temperature(margins: np.ndarray, weights: np.ndarray) -> float:
    """argmin over T of the weighted sum of −log σ(margin / T) and log(T)² / 2 s², T in 0.05 to 20.

    The second term is a prior, since a few held-out groups say little: rewards have standard deviation 1, and people
    agree with a fair reward model about as often as T = 1 has it. A handful of groups that happen to disagree with the
    model would otherwise call every pair even.
    """

    def loss(log_t: float) -> float:
        misfit = float((np.logaddexp(0, -margins / np.exp(log_t)) * weights).sum())
        return misfit + log_t**2 / (2 * _PRIOR_WIDTH**2)

    found: Any = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))
