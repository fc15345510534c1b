"""Weigh a task's scores by held-out accuracies, calibrate its rewards, and set their uncertainty.

    reward = (raw reward − center) / scale                     mean 0, standard deviation 1 over the training part
    P(a better than b) = σ((reward_a − reward_b) / T)          T fits the held-out pairs

Raw rewards of different tasks have arbitrary units; with this, rewards and win probabilities are comparable.

The posterior of a reward (model/posterior.py) follows from the heads that the steps have fitted:

    exact heads          reward = Σ_h weight_h · score_h / scale_h: the sum of the heads' posteriors
    trained further      the posterior of the phase-1 score stands for the reward's, both in standard deviations
    the general model    the posterior of its head

Shapes: N responses of an example, s scores, k experts, P pairs.
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
from .embedding import base_embeddings, map_rows, sample, task_vectors
from .exact_solver import LinearPairs, laplace, linear_pairs, out_of_fold, pair_accuracy
from .examples import PreferenceExample, labeled
from .losses import preference_losses
from .steps import Run, State, StepMetrics, Training, posterior_state

EXPERT_SCALES = (1.0, 0.5, 0.25, 0.0)
"""Factors of the experts' weights relative to those of the base scores; see `rescale_experts`."""
_STANDARD_ERRORS = 2.0  # coin flips are predicted that well in one of 40 cases
_MIN_ABOVE_CHANCE = 0.025  # a lower accuracy of phase 1 above chance is not a reference
_PRIOR_WIDTH = 0.5  # standard deviation of log T

Examples = Sequence[PreferenceExample]
Vectors = Mapping[str, Tensor]
"""Key of an example → a row for each of its responses: the aggregator's inputs (N, m·D + s), or scores (N, s)."""


# --- phase 3 with an exact fit ----------------------------------------------------------------------------------------


@torch.no_grad()
def weight_scores(training: Training, task: str) -> StepMetrics:
    """Set the weights of a task's aggregator from held-out scores, and calibrate the rewards on them."""
    run, (train, validation) = training.run, training.of(task)
    task_model, exact = run.model.task_model(task), training.is_exact(task)
    aggregator, linear = task_model.aggregator, task_model.aggregator.linear
    assert linear is not None
    vectors = task_vectors(run, task, validation if exact else [*train, *validation])
    scores, pairs, general = set_weights(training, task, train, vectors)
    rewards, calibration = map_rows(aggregator, vectors, run), task_model.calibration
    if exact:
        rewards |= map_rows(linear, scores, run)
        calibrate(calibration, rewards, [], [*train, *validation])
        set_from_heads(training, task)
    else:
        calibrate(calibration, rewards, train, validation)
        set_from_phase1(training, task, torch.cat([scores[e.key] for e in train]))
    margins = pairs.margins(linear.weight.cpu()) / float(calibration.scale * calibration.temperature)
    loss = (preference_losses(margins, pairs.target) * pairs.weight).sum() / pairs.weight.sum().clamp(min=1e-12)
    metrics = {"loss": float(loss), "accuracy": pair_accuracy(margins, pairs.target, pairs.weight), "steps": 0.0}
    metrics |= {} if general is None else {"accuracy/general": general}
    names = (*task_model.experts.capabilities, *aggregator.base_names)
    metrics |= {f"weight/{name}": float(weight) for name, weight in zip(names, linear.weight, strict=True)}
    return metrics


@torch.no_grad()
def set_weights(
    training: Training, task: str, train: Examples, vectors: Vectors
) -> tuple[Vectors, LinearPairs, float | None]:
    """Set the weights of a task's linear map; return the scores, the held-out pairs, the general model's accuracy.

    Scores of heads that are all fitted exactly are out of fold. Otherwise those of the validation prompts are held out;
    if none of these has labels, those of the training prompts stand for them.

    Args:
        train: examples of the training part.
        vectors: the aggregator's inputs; of the training part only if not all heads are fitted exactly.
    """
    run, (_, validation), exact = training.run, training.of(task), training.is_exact(task)
    task_model = run.model.task_model(task)
    aggregator, linear = task_model.aggregator, task_model.aggregator.linear
    assert linear is not None
    capabilities = task_model.experts.capabilities
    if exact:
        examples, scores, folds = train, out_of_fold_scores(training, task, train), training.folds
        accuracies = [float(folds[task, name].accuracy) for name in (*capabilities, "per_task")]
    else:
        examples = validation if labeled(validation) else train
        scores = {key: aggregator.scores(row) for key, row in vectors.items()}
        names = (*capabilities, None)  # phase 1's score is the first after those of the experts
        unit = torch.ones(len(aggregator.base_names) + len(capabilities))
        by_name = linear_pairs(labeled(examples, names), lambda e: scores[e.key], unit, names, 0)
        accuracies = [_accuracy(pairs, i) for i, pairs in enumerate(by_name)]
    *experts, reference = accuracies
    experts = [_above_chance(share, examples, name) for share, name in zip(experts, capabilities, strict=True)]
    known = torch.cat([scores[e.key] for e in train])
    linear.normalizer.fit(known)
    if capabilities:
        task_model.normalizer.fit(known[:, : len(capabilities)])
    scale, seed = linear.normalizer.scale.cpu(), run.config.seed
    (pairs,) = linear_pairs(labeled(examples), lambda e: scores[e.key], scale, [None], seed)
    general = _accuracy(pairs, len(capabilities) + 1)
    weights = score_weights(experts, reference, general, linear.read.cpu())
    linear.weight.copy_(rescale_experts(weights, len(capabilities), pairs))
    return scores, pairs, general


def _above_chance(accuracy: float | None, examples: Examples, capability: str) -> float | None:
    """Return an accuracy on the examples' labels of a capability; 0.5 if it is not two standard errors above that.

    At chance, the variance of the share of a group's pairs in the right order is that of Kendall's τ, divided by 4:
    (2 N + 5) / (18 N (N − 1)) for N responses.
    """
    sizes = [len({i for pair in pairs for i in pair[:2]}) for e in examples if (pairs := e.pairs.get(capability))]
    error = sum((2 * n + 5) / (18 * n * (n - 1)) for n in sizes) ** 0.5 / max(len(sizes), 1)
    return accuracy if accuracy is None or accuracy > 0.5 + _STANDARD_ERRORS * error else 0.5


def _accuracy(pairs: LinearPairs, score: int) -> float | None:
    known = (pairs.weight * (2 * pairs.target - 1)).sum() > 0
    return pair_accuracy(pairs.differences[:, score], pairs.target, pairs.weight) if known else None


def out_of_fold_scores(training: Training, task: str, examples: Examples) -> dict[str, Tensor]:
    """Return key → the aggregator's scores (N, s), each by the head that was fitted without the example's fold."""
    run = training.run
    vectors = base_embeddings(run, run.model.task_model(task).base, examples)
    by_head = [
        out_of_fold(head, training.folds[key], examples, vectors, run.config.seed)
        for key, head in training.scored_heads(task).items()
    ]
    return {e.key: torch.stack([scores[e.key] for scores in by_head], 1) for e in examples}


def score_weights(
    accuracies: Sequence[float | None], reference: float | None, general: float | None, read: Tensor
) -> Tensor:
    """Return the aggregator's weights (s,), which sum to 1.

    The scores of phase 1 and of the head on all labels have equal weights. The weight of an expert or of the general
    model is relative to theirs: its accuracy above chance on held-out labels / that of phase 1, from 0 (labels that
    cannot be predicted, or a task unlike the others) to 1. Without held-out labels, it is 1. If no score is left, all
    have equal weights. Weights that are fitted to the overall preferences are worse: docs/log.md has the figures.

    Args:
        accuracies: of the k experts, on labels of their capabilities; the scores after theirs are base scores.
        reference: the accuracy of phase 1 on the overall labels.
        general: that of the general model, whose score is the second of the base scores.
        read: (s,), whether the aggregator reads the score.
    """
    weights, equal = read.float(), read / read.sum().clamp(min=1)
    if reference is None:
        return equal
    above = max(reference - 0.5, _MIN_ABOVE_CHANCE)
    for i, accuracy in [*enumerate(accuracies), (len(accuracies) + 1, general)]:
        if accuracy is not None:
            weights[i] *= min(max((accuracy - 0.5) / above, 0.0), 1.0)
    return weights / weights.sum() if weights.any() else equal


def rescale_experts(weights: Tensor, count: int, pairs: LinearPairs) -> Tensor:
    """Multiply the experts' weights by the first of `EXPERT_SCALES` unless another one is better by a standard error.

    A judge's labels may be predictable and still not be what people prefer. The scales are compared by the loss on the
    overall preferences, each at its best temperature; standard errors are over pairs, weighted as in the loss.

    Args:
        weights: (s,), as by `score_weights`.
        count: k, the number of experts.
        pairs: the overall preferences, where a difference is that of normalized held-out scores (s,).
    """
    if not weights[count:].any():
        return weights  # the reward is that of the experts alone
    scaled = [torch.cat([scale * weights[:count], weights[count:]]) for scale in EXPERT_SCALES]
    losses: list[Tensor] = []
    for row in scaled:
        margins = pairs.margins(row)[:, None] * torch.logspace(-1.3, 1.3, 40)  # a column per temperature
        by_temperature = preference_losses(margins, pairs.target[:, None])
        losses.append(by_temperature[:, int((by_temperature * pairs.weight[:, None]).sum(0).argmin())])
    best, largest = scaled[0], 0.0
    for row, loss in zip(scaled[1:], losses[1:], strict=True):
        gains = pairs.weight * (losses[0] - loss)
        gain = float(gains.sum())
        if gain > max(largest, float(gains.square().sum().sqrt())):
            best, largest = row, gain
    return best / best.sum().clamp(min=1e-12)


# --- calibration ------------------------------------------------------------------------------------------------------


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


# --- uncertainty ------------------------------------------------------------------------------------------------------


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
