"""Calibrate a task's rewards, and set their uncertainty.

    reward = (raw reward − center) / scale                     mean 0, standard deviation 1 over the training part
    P(a better than b) = σ((reward_a − reward_b) / T)          T fits the held-out pairs

Raw rewards of different tasks have arbitrary units; with this, rewards and win probabilities are comparable.

The posterior of a reward (model/posterior.py) follows from the heads that the steps have fitted:

    exact heads          reward = Σ_h weight_h · score_h / scale_h: the sum of the heads' posteriors
    trained further      the posterior of the phase-1 score stands for the reward's, both in standard deviations
    the general model    the posterior of its head

Shapes: N responses of an example, P pairs, s scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ..model.heads import BranchScorer, HeadPosterior, Posterior
from ..model.mixture import Calibration
from .batches import PreferenceExample
from .embedding import base_embeddings, sample
from .exact_solver import laplace, linear_pairs
from .steps import Run, State, Training, posterior_state

_PRIOR_WIDTH = 0.5  # standard deviation of log T

Examples = Sequence[PreferenceExample]


def calibrate(calibration: Calibration, rewards: Mapping[str, Tensor], train: Examples, validation: Examples) -> None:
    """Set center and scale from the rewards of all examples, and the temperature from the validation pairs.

    Without validation pairs, the temperature is fitted on training pairs.

    Args:
        rewards: key of an example → raw rewards (N,); examples without rewards are ignored.
    """
    train, validation = ([e for e in part if e.key in rewards] for part in (train, validation))
    known = torch.cat([rewards[e.key] for e in (*train, *validation)])
    calibration.center.fill_(float(known.mean()))
    calibration.scale.fill_(max(float(known.std(correction=0)), 1e-6))
    rows = [
        (float(rewards[e.key][pair.better] - rewards[e.key][pair.worse]), pair.weight / len(pairs))
        for e in [e for e in validation if e.pairs.get(None)] or train
        if (pairs := e.pairs.get(None))
        for pair in pairs
    ]
    if rows:
        margins, weights = np.array(rows).T
        calibration.temperature.fill_(temperature(margins / float(calibration.scale), weights))


def temperature(margins: np.ndarray, weights: np.ndarray) -> float:
    """Return argmin over T in [0.05, 20] of Σ weight · −log σ(margin / T) + log(T)² / (2 s²), s = 0.5.

    The second term is a prior centered at T = 1, where the predicted probabilities are close to how often people agree
    with a usable reward model. Without it, a few held-out groups that happen to disagree with the model would push T to
    its bound, and every pair would be predicted a tie.

    Args:
        margins: (P,), reward of the better response − reward of the worse, in units of `scale`.
        weights: (P,), the pair's weight / number of the group's pairs.
    """

    def loss(log_t: float) -> float:
        misfit = float((np.logaddexp(0, -margins / np.exp(log_t)) * weights).sum())
        return misfit + log_t**2 / (2 * _PRIOR_WIDTH**2)

    result: Any = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(result.x))


@torch.no_grad()
def with_posterior(run: Run, scorer: BranchScorer, examples: Examples, l2: float, state: State) -> State:
    """Return the state of a trained branch and head with the posterior of the head, if it has one.

    An exact fit has one already. Any other head has one if its penalty is positive. If embeddings are not
    cached, the curvature of the loss is that of a sample.

    Args:
        scorer: has the state.
        examples: those with overall pairs on which it was trained.
        l2: strength of the penalty.
    """
    if "head_rest" in state or not l2:
        return state
    some, scale = sample(run, examples), scorer.head.normalizer.scale.cpu()
    vectors = base_embeddings(run, scorer, some)
    (pairs,) = linear_pairs(some, lambda e: vectors[e.key].cpu(), scale, [None], run.config.seed)
    share = float(pairs.weight.sum()) / max(len(some), 1)
    posterior = laplace(pairs, scorer.head.score.weight[0].cpu(), l2, share * len(examples))
    return state | posterior_state(posterior, "head")


@torch.no_grad()
def set_from_heads(training: Training, task: str) -> None:
    """Set the posterior of a task's calibrated reward from the posteriors of the heads that its linear map reads."""
    task_model = training.run.model.task_model(task)
    linear, scale = task_model.aggregator.linear, task_model.base.head.normalizer.scale
    assert linear is not None
    heads = training.scored_heads(task)
    weights = linear.weight * linear.read / (linear.normalizer.scale * task_model.calibration.scale)
    coefficients = [w * scale / head.normalizer.scale for w, head in zip(weights, heads.values(), strict=True)]
    _set(task_model.posterior, coefficients, [training.posteriors[key] for key in heads])


def set_from_phase1(training: Training, task: str, scores: Tensor) -> None:
    """Set the posterior of a task's reward to that of its phase-1 score in standard deviations, if it reads the branch.

    Args:
        scores: (n, s), the aggregator's scores of the training part.
    """
    task_model = training.run.model.task_model(task)
    if task_model.reads_base:
        deviation = float(scores[:, len(task_model.experts)].std(correction=0))
        set_from_score(task_model.posterior, training.posteriors.get((task, "per_task")), deviation)


def set_from_score(posterior: Posterior, head: HeadPosterior | None, scale: float) -> None:
    """Set the posterior of a reward that is a head's score / scale; do nothing without the head's posterior."""
    if head is not None:
        _set(posterior, [torch.full_like(posterior.rest, 1 / max(scale, 1e-6))], [head])


def _set(posterior: Posterior, coefficients: Sequence[Tensor], heads: Sequence[HeadPosterior]) -> None:
    parts = [HeadPosterior(*(part.to(posterior.rest.device) for part in head)) for head in heads]
    posterior.set_sum(list(zip(coefficients, parts, strict=True)))
