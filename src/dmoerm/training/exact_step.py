"""Heads that are fitted exactly (`l2: auto`), and their out-of-fold scores.

Shapes: N responses of an example, D embedding width, K folds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.heads import Head
from .batches import PreferenceExample, labeled
from .linear_heads import (
    FOLDS,
    LinearFit,
    Prior,
    fit_all_labels,
    fit_linear,
    fold_of,
    linear_pairs,
)
from .steps import FoldWeights, State, StepMetrics, posterior_state

Examples = Sequence[PreferenceExample]
Vectors = Mapping[str, Tensor]
"""Key of an example → its responses' embeddings (N, D)."""


def strength(l2: float | str) -> float:
    """Return a penalty's strength; `auto`, for which the head is not trained further, is 0."""
    return 0.0 if isinstance(l2, str) else l2


class FoldedHead(NamedTuple):
    """An exactly fitted head with its weights by fold, toward which other heads may be pulled; see `Prior`."""

    head: Head
    folds: FoldWeights
    preferred: bool = False

    def prior(self, scale: Tensor) -> Prior:
        """Return its weights (D,), and those by fold, in the units of another normalizer's scale (D,)."""
        ratio = scale / self.head.normalizer.scale.cpu()
        return Prior(self.head.score.weight[0].cpu() * ratio, self.folds.weights.cpu() * ratio, self.preferred)


def started(head: Head) -> FoldedHead | None:
    """Return a head that starts from a reward model, whose weights no fold has changed; None for other heads."""
    weights = head.score.weight.detach().expand(FOLDS, -1)
    return FoldedHead(head, FoldWeights(weights, torch.tensor(torch.nan))) if head.has_start else None


@torch.no_grad()
def fit_heads(
    heads: Sequence[Head],
    names: Sequence[str | None],
    examples: Examples,
    vectors: Vectors,
    seed: int,
    general: FoldedHead | None = None,
) -> list[LinearFit]:
    """Fit each head to the labels of its capability (None: overall), and set its weights.

    Args:
        heads: their normalizers are fitted already and equal.
        seed: of the folds.
        general: the general model's head, toward which the penalty may pull; see `fit_linear`.
    """
    scale = heads[0].normalizer.scale.cpu()
    all_pairs = linear_pairs(labeled(examples, names), lambda e: vectors[e.key], scale, names, seed)
    fits = [fit_linear(pairs, general and general.prior(scale)) for pairs in all_pairs]
    for head, fit in zip(heads, fits, strict=True):
        head.score.weight.copy_(fit.weight[None])
    return fits


@torch.no_grad()
def fit_all_labels_head(
    head: Head,
    capabilities: Sequence[str],
    examples: Examples,
    vectors: Vectors,
    seed: int,
    general: FoldedHead | None = None,
) -> LinearFit:
    """Fit a head to the overall and the capability labels together, and set its weights; see `fit_heads`."""
    names = (None, *capabilities)
    scale = head.normalizer.scale.cpu()
    overall, *others = linear_pairs(labeled(examples, names), lambda e: vectors[e.key], scale, names, seed)
    fit = fit_all_labels(overall, others, general and general.prior(scale))
    head.score.weight.copy_(fit.weight[None])
    return fit


@torch.no_grad()
def out_of_fold(
    head: Head, folds: FoldWeights, examples: Examples, vectors: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Return key → scores (N,) of each example's responses by the head that was fitted without the example's fold.

    They are computed on the CPU, where embeddings and weights by fold are.

    Args:
        head: its normalizer is used.
        vectors: key → embeddings (N, D).
        seed: of the folds.
    """
    normalizer, weights = copy.deepcopy(head.normalizer).cpu(), folds.weights.cpu()
    return {e.key: normalizer(vectors[e.key].float()) @ weights[fold_of(e.prompt, seed)] for e in examples}


def exact_metrics(fits: Sequence[LinearFit], names: Sequence[str] = ()) -> StepMetrics:
    """Return the mean out-of-fold loss and accuracy, and each fit's figures if names are given."""
    fields = ("loss", "accuracy", "l2")
    metrics = {field: sum(getattr(fit, field) for fit in fits) / len(fits) for field in fields[:2]} | {"steps": 0.0}
    if not names:
        return metrics | {"l2": fits[0].l2, "pulled": float(fits[0].pulled)}
    return metrics | {
        f"{field}/{name}": getattr(fit, field) for fit, name in zip(fits, names, strict=True) for field in fields
    }


def head_state(head: Head, fit: LinearFit, prefix: str = "head") -> State:
    """Return the state of an exactly fitted head, with its weights by fold and its posterior."""
    return {f"{prefix}.{name}": t for name, t in head.state_dict().items()} | fold_state(fit, prefix)


def fold_state(fit: LinearFit, prefix: str) -> State:
    """Return what `Training.read` reads."""
    folds = {f"{prefix}_folds": fit.fold_weights, f"{prefix}_accuracy": torch.tensor(fit.accuracy)}
    return folds | posterior_state(fit.posterior, prefix)
