"""Set the posteriors of rewards from those of the heads that the steps have fitted; see model/posterior.py.

    exact heads          reward = Σ_h weight_h · score_h / scale_h: the sum of the heads' posteriors
    trained further      the posterior of the phase-1 score stands for that of the reward, both in standard deviations
    the general model    the posterior of its head

Shapes: D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.heads import BranchScorer
from ..model.posterior import HeadPosterior, Posterior
from .batches import PreferenceExample
from .embedding import base_embeddings, sample
from .linear_heads import laplace, linear_pairs
from .steps import Run, State, Training, posterior_state

ScoredHead = tuple[Any, tuple[str | None, str]]
"""A head, and the key of its score in `Training.folds` and `Training.posteriors`."""


@torch.no_grad()
def with_posterior(
    run: Run, scorer: BranchScorer, examples: Sequence[PreferenceExample], l2: float, state: State
) -> State:
    """Return the state of a trained branch and head with the posterior of the head, if it has one.

    An exact fit has one already. Any other linear head has one if its penalty is positive. If embeddings are not
    cached, the curvature of the loss is that of a sample.

    Args:
        scorer: has the state.
        examples: those with overall pairs on which it was trained.
        l2: strength of the penalty.
    """
    if "head_rest" in state or not l2 or not isinstance(scorer.head.hidden, nn.Identity):
        return state
    some, scale = sample(run, examples), scorer.head.normalizer.scale.cpu()
    vectors = base_embeddings(run, scorer, some)
    (pairs,) = linear_pairs(some, lambda e: vectors[e.key].cpu(), scale, [None], run.config.seed)
    share = float(pairs.weight.sum()) / max(len(some), 1)
    posterior = laplace(pairs, scorer.head.score.weight[0].cpu(), l2, share * len(examples))
    return state | posterior_state(posterior, "head")


@torch.no_grad()
def set_from_heads(training: Training, task: str) -> None:
    """Set the posterior of a task's calibrated reward from those of the heads whose scores its linear map reads."""
    task_model = training.run.model.task_model(task)
    linear, scale = task_model.aggregator.linear, task_model.base.head.normalizer.scale
    heads = scored_heads(training, task)
    assert linear is not None
    weights = linear.weight * linear.read / (linear.normalizer.scale * task_model.calibration.scale)
    coefficients = [w * scale / head.normalizer.scale for w, (head, _) in zip(weights, heads, strict=True)]
    _set(task_model.posterior, coefficients, [training.posteriors[key] for _, key in heads])


def scored_heads(training: Training, task: str) -> list[ScoredHead]:
    """Return the head of each score that the aggregator reads, and its key in `folds` and `posteriors`."""
    task_model = training.run.model.task_model(task)
    heads: list[ScoredHead] = [
        (head, (task, name))
        for name, head in zip(task_model.experts.capabilities, task_model.experts.heads, strict=True)
    ]
    general = training.run.model.general.head
    base = {"per_task": task_model.base.head, "general": general, "all_labels": task_model.all_labels}
    names = task_model.aggregator.base_names
    return heads + [(base[name], (None if name == "general" else task, name)) for name in names]


@torch.no_grad()
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
