"""Fit linear heads on fixed embeddings exactly, with strengths and out-of-fold weights by cross-validation.

    minimize over w:   Σ_p a_p · loss_p(w · x_p) / Σ_p a_p  +  l2/2 · |w|²          x_p = z_better − z_worse, normalized

The problem is convex, so it is solved and not trained: in the eigenvectors of X'AX, a quarter of that matrix's
eigenvalues bound the curvature of the loss, and each coordinate has its own step size (Böhning and Lindsay, 1988). All
folds and strengths of a head are columns of one matrix.

Shapes: P pairs, D embedding width, K folds, C columns or choices of strength and start, N responses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..model.posterior import MAX_RANK, HeadPosterior
from .batches import PreferenceExample, VectorCollator
from .losses import preference_losses

FOLDS = 5
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CAPABILITY_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
"""Weights of a group's labels on one capability, where its overall labels have weight 1 in total."""
_DEFAULT_STRENGTH = 1.0  # if the labels are of one prompt only
_MAX_STEPS = 500
_TOLERANCE = 1e-3  # upper bound on a weight vector's relative distance from the optimum


@dataclass(frozen=True, eq=False)
class LinearPairs:
    """Ordered pairs of normalized embeddings, all for one head.

    Attributes:
        differences: (P, D), embedding of the better response − that of the worse, in units of the normalizer.
        target, margin, weight: (P,), as in `PreferenceBatch`.
        fold: (P,), 0 … K − 1; pairs of equal prompts have the same fold.
        overall: (P,), whether the pair is an overall preference, by which strengths are chosen.
    """

    differences: Tensor
    target: Tensor
    margin: Tensor
    weight: Tensor
    fold: Tensor
    overall: Tensor


@dataclass(frozen=True, eq=False)
class Prior:
    """Weights that a penalty may pull a head toward, in the units of its normalizer.

    Attributes:
        weight: (D,), of the fit that has all pairs.
        fold_weights: (K, D), the k-th of the fit without the pairs of fold k.
        preferred: the penalty pulls toward them unless a pull toward 0 has a lower loss by a standard error; otherwise
            the reverse.
    """

    weight: Tensor
    fold_weights: Tensor
    preferred: bool = False


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A fitted linear head.

    Attributes:
        weight: (D,), fitted to all pairs.
        fold_weights: (K, D), the k-th fitted without the pairs of fold k.
        l2: the strength, the one with the lowest loss on the pairs that were left out.
        loss, accuracy: on the pairs that were left out.
        capability_weight: the chosen entry of `CAPABILITY_WEIGHTS`; 0 for a head of one kind of label.
        pulled: whether the penalty is on the distance from the prior's weights and not from 0; see `Prior.preferred`.
        posterior: of the weights.
    """

    weight: Tensor
    fold_weights: Tensor
    l2: float
    loss: float
    accuracy: float
    capability_weight: float = 0.0
    pulled: bool = False
    posterior: HeadPosterior | None = None


def fold_of(prompt: str, seed: int) -> int:
    """Return the fold of a prompt, which does not depend on other prompts."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt}".encode()).digest()[:4], "big") % FOLDS


def linear_pairs(
    examples: Sequence[PreferenceExample],
    features: Callable[[PreferenceExample], Tensor],
    scale: Tensor,
    capabilities: Sequence[str | None],
    seed: int,
) -> list[LinearPairs]:
    """Return the ordered pairs of each capability (None: overall).

    Args:
        examples: may be empty, if no label is known.
        features: example → its responses' embeddings (N, D).
        scale: (D,), the normalizer's.
        seed: of the folds.
    """
    if not examples:
        none = torch.zeros(0)
        empty = LinearPairs(scale.new_zeros(0, len(scale)), none, none, none, none.long(), none.bool())
        return [empty for _ in capabilities]
    batch = VectorCollator(features, capabilities)(examples)[0]
    assert isinstance(batch.inputs, Tensor)
    vectors = batch.inputs.float()
    folds = [fold_of(example.prompt, seed) for example in examples for _ in example.encoded.responses]
    fold = torch.tensor(folds, dtype=torch.long)
    pairs: list[LinearPairs] = []
    for expert, name in enumerate(capabilities):
        rows = (batch.expert == expert).nonzero().squeeze(-1)
        better, worse = batch.better[rows], batch.worse[rows]
        differences = (vectors[better] - vectors[worse]) / scale
        labels = batch.target[rows], batch.margin[rows], batch.weight[rows]
        overall = torch.full((len(rows),), name is None)
        pairs.append(LinearPairs(differences, *labels, fold[better], overall))
    return pairs


def fit_linear(pairs: LinearPairs, prior: Prior | None = None) -> LinearFit:
    """Fit a head to pairs of one kind of label; its strength is chosen on these labels.

    Args:
        prior: weights that the penalty may pull toward, if the loss on the pairs that are left out says so; standard
            errors are over pairs, weighted as in the loss. See `Prior.preferred`.
    """
    fit = _cross_validated(pairs, pairs.weight, torch.ones_like(pairs.weight, dtype=torch.bool), prior)
    return replace(fit, posterior=laplace(pairs, fit.weight, fit.l2, float(pairs.weight.sum())))


def fit_all_labels(overall: LinearPairs, capabilities: Sequence[LinearPairs], prior: Prior | None = None) -> LinearFit:
    """Fit a head to overall and capability pairs together.

    The strength and the weight of the capability labels have the lowest loss on the overall pairs that are left out.

    Args:
        prior: as in `fit_linear`.
    """
    best = fit_linear(overall, prior)
    parts = [overall, *capabilities]
    pairs = LinearPairs(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(LinearPairs)))
    for share in CAPABILITY_WEIGHTS[1:] if len(pairs.weight) > len(overall.weight) else ():
        weighted = replace(pairs, weight=pairs.weight * torch.where(pairs.overall, 1.0, share))
        fit = _cross_validated(weighted, weighted.weight, pairs.overall, prior, share)
        if fit.loss < best.loss:
            groups = float(overall.weight.sum())  # those with capability labels only do not count: labels are alike
            best = replace(fit, posterior=laplace(weighted, fit.weight, fit.l2, groups))
    return best


def _cross_validated(
    pairs: LinearPairs, weight: Tensor, judged: Tensor, prior: Prior | None = None, share: float = 0.0
) -> LinearFit:
    """Fit all folds, strengths and starts, and keep what has the lowest loss on the `judged` pairs (P,) left out."""
    inside = (pairs.fold[:, None] != torch.arange(FOLDS)).float()  # (P, K): is the pair in the training part of fold k?
    columns = torch.cat([inside, torch.ones(len(weight), 1)], 1) * weight[:, None]  # (P, K + 1)
    start = _starts(pairs.differences.shape[1], prior)  # (D, C, K + 1): 0, and the prior if there is one, per strength
    choices = start.shape[1]
    required = pairs.margin[:, None] - pairs.differences @ start.flatten(1)
    strengths = torch.tensor(STRENGTHS).repeat(choices // len(STRENGTHS)).repeat_interleave(FOLDS + 1)
    changes = solve(pairs.differences, pairs.target, required, columns.repeat(1, choices), strengths)
    solutions = changes.view(start.shape) + start
    margins = _left_out(pairs, solutions)
    losses = preference_losses(margins - pairs.margin[:, None], pairs.target[:, None])  # (P, C)
    judged_weight = weight * judged
    total = judged_weight.sum().clamp(min=1e-12)
    known = len(pairs.fold[judged].unique()) > 1
    preferred = prior is not None and prior.preferred
    best = _best(losses * judged_weight[:, None], preferred) if known else STRENGTHS.index(_DEFAULT_STRENGTH)
    return LinearFit(
        weight=solutions[:, best, FOLDS].contiguous(),
        fold_weights=solutions[:, best, :FOLDS].T.contiguous(),
        l2=STRENGTHS[best % len(STRENGTHS)],
        loss=float((losses[:, best] * judged_weight).sum() / total),
        accuracy=pair_accuracy(margins[:, best], pairs.target, judged_weight),
        capability_weight=share,
        pulled=best >= len(STRENGTHS),
    )


def _best(losses: Tensor, preferred: bool) -> int:
    """Return the choice with the lowest sum of losses (P, C); one of the less preferred kind only by a standard error.

    Args:
        preferred: pulled fits, which are the second half of the choices if there are any, are preferred to free ones.
    """
    total = losses.sum(0)
    free, pulled = int(total[: len(STRENGTHS)].argmin()), int(total.argmin())
    if preferred:
        pulled = len(STRENGTHS) + int(total[len(STRENGTHS) :].argmin())
    gains = losses[:, free] - losses[:, pulled]
    error = float(gains.square().sum().sqrt())
    return pulled if float(gains.sum()) > (-error if preferred else error) else free


def _starts(width: int, prior: Prior | None) -> Tensor:
    starts = [torch.zeros(width, FOLDS + 1)]
    if prior is not None:
        starts.append(torch.cat([prior.fold_weights, prior.weight[None]]).T)
    return torch.stack([start for start in starts for _ in STRENGTHS], 1)


def pair_accuracy(margins: Tensor, target: Tensor, weight: Tensor) -> float:
    """Return the weighted share of pairs (P,) in the labeled order; as in `RowLosses`, a pair weighs 2 p − 1 as much.

    A margin of 0 counts half. Without a pair of positive weight, the result is 0.
    """
    certain = weight * (2 * target - 1)
    correct = (margins > 0).float() + 0.5 * (margins == 0)
    return float((correct * certain).sum() / certain.sum().clamp(min=1e-12))


@torch.no_grad()
def laplace(pairs: LinearPairs, weight: Tensor, l2: float, groups: float) -> HeadPosterior:
    """Return the posterior of a head's weights: the inverse Hessian of groups · (mean loss + l2/2 · |w|²).

    This is the Laplace approximation (arXiv 2402.13210), where l2 is the strength of a Gaussian prior.

    Args:
        weight: (D,), the fitted weights.
        l2: positive.
        groups: the number of labeled groups, of which `pairs` may be a sample; at least 1 is assumed.
    """
    rest = torch.tensor(1 / (max(groups, 1.0) * l2))
    if not len(pairs.differences):
        return HeadPosterior(rest, weight.new_zeros(len(weight), 0))
    probability = torch.sigmoid(pairs.differences @ weight - pairs.margin)
    share = pairs.weight / pairs.weight.sum().clamp(min=1e-12)
    vectors, values = principal(pairs.differences * (share * probability * (1 - probability)).sqrt()[:, None])
    largest = values.topk(min(MAX_RANK, len(values)))
    removed = rest * largest.values / (largest.values + l2)  # of the variance along each direction
    return HeadPosterior(rest, vectors[:, largest.indices] * removed.sqrt())


def _left_out(pairs: LinearPairs, solutions: Tensor) -> Tensor:
    """Return the margins (P, C) of each pair by the solutions (D, C, K + 1) that were fitted without its fold."""
    margins = torch.empty(len(pairs.fold), solutions.shape[1])
    for k in range(FOLDS):
        margins[pairs.fold == k] = pairs.differences[pairs.fold == k] @ solutions[:, :, k]
    return margins


def solve(differences: Tensor, target: Tensor, margin: Tensor, weight: Tensor, l2: Tensor) -> Tensor:
    """Minimize the problem of this module for C columns of weights; return (D, C).

    Args:
        differences: (P, D).
        target: (P,).
        margin: (P,), or (P, C) if the columns require different ones.
        weight: (P, C), non-negative; a column of zeros gives 0.
        l2: (C,), positive.
    """
    if not len(differences):
        return torch.zeros(differences.shape[1], weight.shape[1])
    required = margin if margin.dim() > 1 else margin[:, None]
    share = weight / weight.sum(0).clamp(min=1e-12)
    mean = share.mean(1)  # the eigenvectors are those of all columns' mean
    vectors, curvature = principal(differences * mean.sqrt()[:, None])
    coordinates = differences @ vectors  # (P, R)
    ratio = (share / mean.clamp(min=1e-12)[:, None]).amax(0)  # of a column's curvature to the mean's, at most
    step = 1 / (0.25 * ratio * curvature[:, None] + l2)  # (R, C)
    point = ahead = torch.zeros(len(curvature), weight.shape[1])
    age = torch.zeros(weight.shape[1])  # steps since the momentum was last reset
    for _ in range(_MAX_STEPS):
        residuals = share * (torch.sigmoid(coordinates @ ahead - required) - target[:, None])
        gradient = coordinates.T @ residuals + l2 * ahead
        if bool((gradient.norm(dim=0) <= _TOLERANCE * l2 * ahead.norm(dim=0)).all()):
            break
        moved = ahead - step * gradient
        change = moved - point
        age = torch.where((gradient * change).sum(0) > 0, 0.0, age + 1)  # uphill: momentum is too large
        ahead = moved + (age / (age + 3)) * change
        point = moved
    return vectors @ ahead


def principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the right singular vectors (D, R) of rows (P, D) with R = min(P, D), and the squared singular values."""
    tall = len(rows) > rows.shape[1]
    gram = (rows.T @ rows if tall else rows @ rows.T).double()
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-9 * values[-1].clamp(min=1e-30)
    values, vectors = values[kept], vectors[:, kept]
    if not tall:
        vectors = rows.double().T @ vectors / values.sqrt()
    return vectors.float(), values.float()
