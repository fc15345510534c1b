"""Fit the router's linear map on fixed prompt embeddings: multinomial logistic regression.

    minimize over W, b:   mean_n cross-entropy(W x_n + b, t_n) + l2/2 · |W|²          x_n normalized

The problem is convex and solved as that of the heads (linear_heads.py): half of the eigenvalues of X'X bound the
curvature (Böhning, 1992), and all folds are columns of one matrix. Probabilities of prompts that a fit has not seen
are calibrated, unlike those of its own prompts: they say how often the router errs, and heads and mixture are fitted to
them.

Shapes: n prompts, d width of an embedding, R ≤ d + 1 directions, T tasks, K folds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .linear_heads import FOLDS, principal

STRENGTHS = (
    100.0,
    30.0,
    10.0,
    3.0,
    1.0,
    0.3,
    0.1,
    0.03,
    0.01,
    0.003,
    0.001,
)  # tried in this order until the held-out loss rises
MAX_PROMPTS = 20_000
"""Prompts that are fitted; of more, some at even distances: the map has T · d weights."""
_BIAS = 10.0  # the entry of the bias: large, so that the penalty hardly acts on it
_MAX_STEPS = 300
_TOLERANCE = 1e-2  # relative distance from the optimum at which the steps end
_BINS = 10


class RouterFit(NamedTuple):
    """A fitted router.

    Attributes:
        weight, bias: (T, d) and (T,), fitted to all prompts.
        fold_weights, fold_biases: (K, T, d) and (K, T), the k-th fitted without the prompts of fold k.
        l2: the strength with the lowest loss on the prompts that were left out.
        loss, accuracy, ece: on these prompts; ece is the expected calibration error of the largest probability.
    """

    weight: Tensor
    bias: Tensor
    fold_weights: Tensor
    fold_biases: Tensor
    l2: float
    loss: float
    accuracy: float
    ece: float


def fit_router(vectors: Tensor, labels: Tensor, folds: Tensor, tasks: int) -> RouterFit:
    """Fit the map with the strength that cross-validation finds best.

    Args:
        vectors: (n, d), normalized embeddings of the prompts.
        labels: (n,), the index of each prompt's task.
        folds: (n,), 0 … K − 1; equal prompts have the same fold.
        tasks: T.
    """
    kept = slice(None, None, -(-len(vectors) // MAX_PROMPTS) or 1)
    x, labels, folds = vectors[kept].float(), labels[kept], folds[kept]
    rows = torch.cat([x, torch.full((len(x), 1), _BIAS)], 1)
    columns = torch.cat([folds[:, None] != torch.arange(FOLDS), torch.ones(len(x), 1, dtype=torch.bool)], 1)
    directions, curvature = principal(rows / len(rows) ** 0.5)
    coordinates, target = rows @ directions, functional.one_hot(labels, tasks).float()
    solution = torch.zeros(len(curvature), FOLDS + 1, tasks)
    best: tuple[float, float, Tensor, Tensor] | None = None
    for l2 in STRENGTHS:
        solution = _solve(coordinates, curvature, target, columns.float(), l2, solution)
        every = (coordinates @ solution.flatten(1)).view(len(x), FOLDS + 1, tasks)
        logits = every[torch.arange(len(x)), folds]  # by the fit that was made without the prompt
        loss = float(functional.cross_entropy(logits, labels))
        if best is not None and loss > best[0]:
            break
        best = loss, l2, logits, solution
    assert best is not None
    loss, l2, logits, solution = best
    weights = (directions @ solution.flatten(1)).view(-1, FOLDS + 1, tasks).permute(1, 2, 0)
    weight, bias = weights[..., :-1].contiguous(), weights[..., -1] * _BIAS
    right = (logits.argmax(1) == labels).float()
    ece = calibration_error(torch.softmax(logits, 1).amax(1), right)
    return RouterFit(weight[FOLDS], bias[FOLDS], weight[:FOLDS], bias[:FOLDS], l2, loss, float(right.mean()), ece)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the mean distance between confidence (n,) and the share that is right (n,), over ten bins of confidence.

    The bins divide 0 to 1 evenly and weigh as many prompts as they hold.
    """
    index = (confidence * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.zeros(_BINS).index_add_(0, index, confidence - right)
    return float(gaps.abs().sum() / max(len(confidence), 1))


def _solve(coordinates: Tensor, curvature: Tensor, target: Tensor, columns: Tensor, l2: float, start: Tensor) -> Tensor:
    """Return the solutions (R, K + 1, T) in the eigenvectors of the prompts' second moments.

    Args:
        coordinates, curvature: (n, R) and (R,), the prompts in these vectors, and the eigenvalues.
        target: (n, T), one-hot.
        columns: (n, K + 1), whether the prompt is in the column's training part.
        start: (R, K + 1, T).
    """
    share = columns / columns.sum(0).clamp(min=1)
    ratio = (share * len(share)).amax(0)  # of a column's curvature to that of all prompts, at most
    step = 1 / (0.5 * ratio[:, None] * curvature[:, None, None] + l2)
    point = ahead = start
    age = torch.zeros(start.shape[1])  # steps since the momentum was last reset
    for _ in range(_MAX_STEPS):
        probability = torch.softmax((coordinates @ ahead.flatten(1)).view(len(target), -1, target.shape[1]), 2)
        errors = share[..., None] * (probability - target[:, None])
        gradient = (coordinates.T @ errors.flatten(1)).view(start.shape) + l2 * ahead
        if bool((gradient.norm(dim=(0, 2)) <= _TOLERANCE * l2 * ahead.norm(dim=(0, 2))).all()):
            break
        moved = ahead - step * gradient
        change = moved - point
        age = torch.where((gradient * change).sum((0, 2)) > 0, 0.0, age + 1)  # uphill: momentum is too large
        ahead = moved + (age / (age + 3))[:, None] * change
        point = moved
    return ahead
