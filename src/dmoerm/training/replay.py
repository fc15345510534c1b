"""Fit a linear head to new labels, with the posterior of its old fit in place of the old labels.

    minimize over w:   Σ_p a_p · loss_p(w · x_p)  +  ½ (w − w_0)' C⁻¹ (w − w_0)        C = rest · I − basis · basis'

The posterior is the Gaussian of model/posterior.py: the second term is the quadratic approximation, at its minimum w_0,
of what the old fit minimized. With w = w_0 + C^½ u it is ½ |u|², so that `solve` applies.

Shapes: P pairs, D embedding width, R rank of the basis, K folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from ..model.posterior import MAX_RANK, HeadPosterior
from .linear_heads import CAPABILITY_WEIGHTS, FOLDS, LinearFit, LinearPairs, laplace, pair_accuracy, solve
from .losses import preference_losses

_LEAST = 1e-6  # share of the variance without data that the old labels leave at least, against rounding


def fit_update(pairs: LinearPairs, weight: Tensor, posterior: HeadPosterior) -> LinearFit:
    """Fit a head to new pairs, starting from its old fit.

    Args:
        pairs: at least one.
        weight: (D,), the old fit.
        posterior: of the old fit.

    Returns:
        The new fit; `fold_weights` are fitted to the old labels and to the new ones of the other folds.
    """
    moved = replace(
        pairs, differences=_root(posterior, pairs.differences), margin=pairs.margin - pairs.differences @ weight
    )
    inside = (pairs.fold[:, None] != torch.arange(FOLDS)).float()
    columns = torch.cat([inside, torch.ones(len(pairs.weight), 1)], 1) * pairs.weight[:, None]  # (P, K + 1)
    total = columns.sum(0).clamp(min=1e-12)
    changes = solve(moved.differences, moved.target, moved.margin, columns, 1 / total)
    solutions = weight[:, None] + _root(posterior, changes.T).T
    margins = (pairs.differences @ solutions)[torch.arange(len(pairs.fold)), pairs.fold]
    losses = preference_losses(margins - pairs.margin, pairs.target) * pairs.weight
    groups = max(float(pairs.weight.sum()), 1.0)
    return LinearFit(
        weight=solutions[:, FOLDS].contiguous(),
        fold_weights=solutions[:, :FOLDS].T.contiguous(),
        l2=1 / groups,
        loss=float(losses.sum() / groups),
        accuracy=pair_accuracy(margins, pairs.target, pairs.weight),
        posterior=_joined(posterior, laplace(moved, changes[:, FOLDS], 1 / groups, groups)),
    )


def fit_update_all_labels(
    overall: LinearPairs, capabilities: Sequence[LinearPairs], weight: Tensor, posterior: HeadPosterior
) -> LinearFit:
    """Fit a head to new overall and capability pairs together; see `fit_update`.

    The weight of the capability labels has the lowest loss on the overall pairs that are left out. As in
    `fit_all_labels`, all labels together weigh as much as the groups with overall labels.
    """
    best = fit_update(overall, weight, posterior)
    lowest = _overall_loss(best, overall)
    pairs = LinearPairs(
        *(torch.cat([getattr(part, f.name) for part in (overall, *capabilities)]) for f in fields(LinearPairs))
    )
    for share in CAPABILITY_WEIGHTS[1:] if len(pairs.weight) > len(overall.weight) else ():
        weights = pairs.weight * torch.where(pairs.overall, 1.0, share)
        scaled = replace(pairs, weight=weights * overall.weight.sum() / weights.sum())
        fit = replace(fit_update(scaled, weight, posterior), capability_weight=share)
        if (loss := _overall_loss(fit, overall)) < lowest:
            best, lowest = fit, loss
    return best


def _overall_loss(fit: LinearFit, overall: LinearPairs) -> float:
    margins = (overall.differences * fit.fold_weights[overall.fold]).sum(1) - overall.margin
    return float((preference_losses(margins, overall.target) * overall.weight).sum())


def _root(posterior: HeadPosterior, rows: Tensor) -> Tensor:
    """Multiply rows (n, D) by the square root of the posterior's covariance, which is symmetric."""
    rest = posterior.rest.sqrt()
    if not posterior.basis.shape[1]:
        return rows * rest
    directions, removed, _ = torch.linalg.svd(posterior.basis, full_matrices=False)
    kept = (posterior.rest - removed.square()).clamp(min=float(posterior.rest) * _LEAST).sqrt()
    return rows * rest + (rows @ directions * (kept - rest)) @ directions.T


def _joined(posterior: HeadPosterior, update: HeadPosterior) -> HeadPosterior:
    """Return the posterior of the weights from that of u, whose covariance without data is the identity."""
    basis = torch.cat([posterior.basis, _root(posterior, update.basis.T).T], 1)
    vectors, values, _ = torch.linalg.svd(basis.double(), full_matrices=False)
    return HeadPosterior(posterior.rest, (vectors * values)[:, :MAX_RANK].to(basis).contiguous())
