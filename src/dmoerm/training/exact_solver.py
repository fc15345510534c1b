"""The exact solver: linear heads on fixed embeddings, with strengths and out-of-fold weights by cross-validation.

    minimize over w:   Σ_p a_p · loss_p(w · x_p) / Σ_p a_p  +  l2/2 · |w|²          x_p = z_better − z_worse, normalized

The problem is convex and is solved, not trained: in the eigenvectors of X'AX, a quarter of that matrix's eigenvalues
bounds the curvature of the loss, and each coordinate has its own step size (Böhning and Lindsay, 1988). All folds and
strengths of a head are columns of one matrix. The router is fitted in the same way (router.py).

Shapes: P pairs, N responses, D embedding width, K folds, C columns or choices of strength and start.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.heads import MAX_RANK, Head, HeadPosterior
from .examples import PreferenceExample, labeled
from .losses import VectorCollator, preference_losses
from .steps import FoldWeights, State, StepMetrics, posterior_state

FOLDS = 5
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CAPABILITY_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
"""Weights of a group's labels on one capability, where its overall labels have weight 1 in total."""
_DEFAULT_STRENGTH = 1.0  # if the labels are of one prompt only
_MAX_STEPS = 500
_TOLERANCE = 1e-3  # upper bound on a weight vector's relative distance from the optimum

Examples = Sequence[PreferenceExample]
Vectors = Mapping[str, Tensor]
"""Key of an example → its responses' embeddings (N, D)."""


# --- the solver ------------------------------------------------------------------------------------------------------


def solve(
    rows: Tensor, target: Tensor, margin: Tensor, weight: Tensor, l2: Tensor, ends: Tensor | None = None
) -> Tensor:
    """Minimize the problem of this module for C columns of weights; return (D, C).

    Args:
        rows: (P, D), the x_p; with `ends`, (N, D) embeddings.
        target: (P,).
        margin: (P,), or (P, C) if the columns require different ones.
        weight: (P, C), non-negative; a column of zeros gives 0.
        l2: (C,), positive.
        ends: (2, P), the rows whose differences are the x_p; each step then costs as much as N rows, and not P.
    """
    if not len(target):
        return torch.zeros(rows.shape[1], weight.shape[1])
    required = margin if margin.dim() > 1 else margin[:, None]
    share = weight / weight.sum(0).clamp(min=1e-12)
    mean = share.mean(1)  # the eigenvectors are those of all columns' mean
    if ends is not None and len(rows) >= len(target):
        rows, ends = rows[ends[0]] - rows[ends[1]], None
    if ends is None:
        vectors, curvature = principal(rows * mean.sqrt()[:, None])
    else:
        spread = _to_rows((rows[ends[0]] - rows[ends[1]]) * mean[:, None], ends, len(rows))
        vectors, curvature = _eigenvectors(rows.double().T @ spread.double())
    coordinates = rows @ vectors  # (P or N, R)
    ratio = (share / mean.clamp(min=1e-12)[:, None]).amax(0)  # of a column's curvature to the mean's, at most
    step = 1 / (0.25 * ratio * curvature[:, None] + l2)  # (R, C)

    def gradient(point: Tensor) -> Tensor:
        scores = coordinates @ point
        scores = scores if ends is None else scores[ends[0]] - scores[ends[1]]
        slope = share * (torch.sigmoid(scores - required) - target[:, None])
        return coordinates.T @ (slope if ends is None else _to_rows(slope, ends, len(rows))) + l2 * point

    start = torch.zeros(len(curvature), weight.shape[1])
    return vectors @ descend(gradient, start, step, l2, (0,), _TOLERANCE, _MAX_STEPS)


def _to_rows(pairs: Tensor, ends: Tensor, count: int) -> Tensor:
    """Add values of pairs (P, C) to their first rows and subtract them from their second ones: (N, C)."""
    rows = pairs.new_zeros(count, pairs.shape[1])
    return rows.index_add_(0, ends[0], pairs).index_add_(0, ends[1], pairs, alpha=-1)


def descend(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    step: Tensor,
    l2: Tensor | float,
    dims: tuple[int, ...],
    tolerance: float,
    max_steps: int,
) -> Tensor:
    """Minimize strongly convex functions, one per column, by accelerated steps whose momentum restarts uphill.

    Args:
        step: broadcasts to `start`: the inverse of a bound on the curvature.
        l2: the strong convexity; |gradient| / l2 bounds the distance from the optimum.
        dims: the dimensions of `start` that belong to one function.
    """
    point = ahead = start
    age = torch.zeros_like(start.sum(dims, keepdim=True))  # steps since the momentum was last reset
    for _ in range(max_steps):
        slope = gradient(ahead)
        if bool((slope.norm(dim=dims) <= tolerance * l2 * ahead.norm(dim=dims)).all()):
            break
        moved = ahead - step * slope
        change = moved - point
        age = torch.where((slope * change).sum(dims, keepdim=True) > 0, 0.0, age + 1)  # uphill: momentum is too large
        ahead = moved + (age / (age + 3)) * change
        point = moved
    return ahead


def principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the right singular vectors (D, R) of rows (P, D) with R = min(P, D), and the squared singular values."""
    if len(rows) > rows.shape[1]:
        return _eigenvectors((rows.T @ rows).double())
    vectors, values = _eigenvectors((rows @ rows.T).double())
    return (rows.double().T @ vectors.double() / values.double().sqrt()).float(), values


def _eigenvectors(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors (D, R) of a symmetric matrix whose eigenvalues are not almost 0, and these."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-9 * values[-1].clamp(min=1e-30)
    return vectors[:, kept].float(), values[kept].float()


def fold_of(prompt: str, seed: int) -> int:
    """Return the fold of a prompt, which does not depend on other prompts."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt}".encode()).digest()[:4], "big") % FOLDS


# --- pairs and fits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LinearPairs:
    """Ordered pairs of responses, all for one head.

    Attributes:
        vectors: (N, D), embeddings in units of the normalizer, relative to the mean over their group.
        ends: (2, P), the better and the worse response of each pair.
        target, margin, weight: (P,), as in `PreferenceBatch`.
        fold: (P,), 0 … K − 1; pairs of equal prompts have the same fold.
        overall: (P,), whether the pair is an overall preference.
        space: (D, R), an orthonormal basis of the space of the vectors, if there are fewer of them than D.
    """

    vectors: Tensor
    ends: Tensor
    target: Tensor
    margin: Tensor
    weight: Tensor
    fold: Tensor
    overall: Tensor
    space: Tensor | None = None

    @property
    def coordinates(self) -> Tensor:
        """The vectors in their space, (N, R): eigenvectors of fewer dimensions take much less time."""
        return self.vectors if self.space is None else self.vectors @ self.space

    @property
    def differences(self) -> Tensor:
        """Embedding of the better response − embedding of the worse one, (P, D)."""
        return self.vectors[self.ends[0]] - self.vectors[self.ends[1]]

    def margins(self, weight: Tensor) -> Tensor:
        """Return the score of the better response − the score of the worse one by weights (D, …): (P, …)."""
        scores = self.vectors @ weight
        return scores[self.ends[0]] - scores[self.ends[1]]

    def merged(self) -> LinearPairs:
        """Return the same problem with one pair for any two responses, whose target is the weighted mean of theirs.

        The loss is then another constant apart, and its gradient and curvature are equal. Pairs with margins stay.
        """
        if self.margin.any():
            return self
        first, second = self.ends.amin(0), self.ends.amax(0)
        unique, index = torch.unique(first * len(self.vectors) + second, return_inverse=True)
        ends = torch.stack([unique // len(self.vectors), unique % len(self.vectors)])
        toward = torch.where(self.ends[0] == first, self.target, 1 - self.target)  # the first response
        weight, target = (
            torch.zeros(len(unique)).index_add_(0, index, each) for each in (self.weight, self.weight * toward)
        )
        fold = torch.zeros(len(unique), dtype=torch.long).index_copy_(0, index, self.fold)
        target = target / weight.clamp(min=1e-30)
        none = torch.zeros(0)
        return LinearPairs(self.vectors, ends, target, torch.zeros(len(unique)), weight, fold, none, self.space)


class Prior(NamedTuple):
    """Weights that a penalty may pull a head toward, in the units of its normalizer.

    Attributes:
        weight: (D,), fitted to all pairs.
        fold_weights: (K, D), the k-th fitted without the pairs of fold k.
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
        l2: the strength with the lowest loss on the pairs that were left out.
        loss, accuracy: on the pairs that were left out.
        capability_weight: the chosen entry of `CAPABILITY_WEIGHTS`; 0 for a head of one kind of label.
        pulled: whether the penalty is on the distance from the prior's weights and not from 0.
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


def linear_pairs(
    examples: Examples,
    features: Callable[[PreferenceExample], Tensor],
    scale: Tensor,
    capabilities: Sequence[str | None],
    seed: int,
) -> list[LinearPairs]:
    """Return the ordered pairs of each capability (None: overall).

    Args:
        features: example → its responses' embeddings (N, D).
        scale: (D,), the normalizer's.
        seed: of the folds.
    """
    if not examples:
        none = torch.zeros(0)
        empty = LinearPairs(
            scale.new_zeros(0, len(scale)), none.long().expand(2, 0), none, none, none, none.long(), none
        )
        return [empty] * len(capabilities)
    (batch,) = VectorCollator(features, capabilities)(examples)
    inputs: Any = batch.inputs
    centered = [part - part.mean(0) for part in inputs.float().split([len(e.encoded.responses) for e in examples])]
    vectors = torch.cat(centered) / scale  # a group's mean is in no difference, and would only cost digits
    space = principal(vectors)[0] if len(vectors) < len(scale) else None
    fold = torch.tensor([fold_of(example.prompt, seed) for example in examples for _ in example.encoded.responses])
    pairs: list[LinearPairs] = []
    for expert, name in enumerate(capabilities):
        rows = (batch.expert == expert).nonzero().squeeze(-1)
        ends = torch.stack([batch.better[rows], batch.worse[rows]])
        labels = batch.target[rows], batch.margin[rows], batch.weight[rows]
        overall = torch.full((len(rows),), name is None)
        pairs.append(LinearPairs(vectors, ends, *labels, fold[ends[0]], overall, space))
    return pairs


def fit_linear(pairs: LinearPairs, prior: Prior | None = None) -> LinearFit:
    """Fit a head to pairs of one kind of label; its strength is chosen on these labels.

    Args:
        prior: weights that the penalty may pull toward, if the loss on the pairs that are left out says so; standard
            errors are over pairs, weighted as in the loss.
    """
    fit = _cross_validated(pairs, torch.ones_like(pairs.weight), prior)
    return replace(fit, posterior=laplace(pairs, fit.weight, fit.l2, float(pairs.weight.sum())))


def fit_all_labels(overall: LinearPairs, capabilities: Sequence[LinearPairs], prior: Prior | None = None) -> LinearFit:
    """Fit a head to overall and capability pairs together, all of the same embeddings.

    The strength and the weight of the capability labels have the lowest loss on the overall pairs that are left out.
    """
    best = fit_linear(overall, prior)
    parts = [overall, *capabilities]
    names = ("ends", "target", "margin", "weight", "fold", "overall")
    pairs = replace(overall, **{name: torch.cat([getattr(part, name) for part in parts], -1) for name in names})
    for share in CAPABILITY_WEIGHTS[1:] if len(pairs.weight) > len(overall.weight) else ():
        weighted = replace(pairs, weight=pairs.weight * torch.where(pairs.overall, 1.0, share))
        fit = _cross_validated(weighted, pairs.overall, prior)
        if fit.loss < best.loss:
            groups = float(overall.weight.sum())  # those with capability labels only do not count: labels are alike
            posterior = laplace(weighted, fit.weight, fit.l2, groups)
            best = replace(fit, capability_weight=share, posterior=posterior)
    return best


def _cross_validated(pairs: LinearPairs, judged: Tensor, prior: Prior | None = None) -> LinearFit:
    """Fit all folds, strengths and starts, and keep what has the lowest loss on the `judged` pairs (P,) left out."""
    problem = pairs.merged()
    inside = (problem.fold[:, None] != torch.arange(FOLDS)).float()  # (P, K): is it in the training part of fold k?
    columns = torch.cat([inside, torch.ones(len(inside), 1)], 1) * problem.weight[:, None]  # (P, K + 1)
    starts = [torch.zeros(pairs.vectors.shape[1], FOLDS + 1)]  # the penalty pulls toward 0, or toward the prior
    starts += [] if prior is None else [torch.cat([prior.fold_weights, prior.weight[None]]).T]
    start = torch.stack([each for each in starts for _ in STRENGTHS], 1)  # (D, C, K + 1)
    required = problem.margin[:, None] - problem.margins(start.flatten(1))
    strengths = torch.tensor(STRENGTHS * len(starts)).repeat_interleave(FOLDS + 1)
    repeated = columns.repeat(1, start.shape[1])
    changes = solve(problem.coordinates, problem.target, required, repeated, strengths, problem.ends)
    solutions = (changes if pairs.space is None else pairs.space @ changes).view(start.shape) + start
    margins = torch.empty(len(pairs.fold), start.shape[1])  # of each pair by the solution without its fold
    for k in range(FOLDS):
        margins[pairs.fold == k] = pairs.margins(solutions[:, :, k])[pairs.fold == k]
    losses = preference_losses(margins - pairs.margin[:, None], pairs.target[:, None])  # (P, C)
    judged_weight = pairs.weight * judged
    best = STRENGTHS.index(_DEFAULT_STRENGTH)
    if len(pairs.fold[judged > 0].unique()) > 1:
        best = _best(losses * judged_weight[:, None], prior is not None and prior.preferred)
    return LinearFit(
        weight=solutions[:, best, FOLDS].contiguous(),
        fold_weights=solutions[:, best, :FOLDS].T.contiguous(),
        l2=STRENGTHS[best % len(STRENGTHS)],
        loss=float((losses[:, best] * judged_weight).sum() / judged_weight.sum().clamp(min=1e-12)),
        accuracy=pair_accuracy(margins[:, best], pairs.target, judged_weight),
        pulled=best >= len(STRENGTHS),
    )


def _best(losses: Tensor, preferred: bool) -> int:
    """Return the choice with the lowest sum of losses (P, C); a less preferred one only by a standard error."""
    total = losses.sum(0)
    free, pulled = int(total[: len(STRENGTHS)].argmin()), int(total.argmin())  # pulled fits are the second half
    if preferred:
        pulled = len(STRENGTHS) + int(total[len(STRENGTHS) :].argmin())
    gains = losses[:, free] - losses[:, pulled]
    error = float(gains.square().sum().sqrt())
    return pulled if float(gains.sum()) > (-error if preferred else error) else free


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
    if not len(pairs.target):
        return HeadPosterior(rest, weight.new_zeros(len(weight), 0))
    pairs = pairs.merged()
    probability = torch.sigmoid(pairs.margins(weight) - pairs.margin)
    share = pairs.weight / pairs.weight.sum().clamp(min=1e-12)
    coordinates = pairs.coordinates
    differences = coordinates[pairs.ends[0]] - coordinates[pairs.ends[1]]
    vectors, values = principal(differences * (share * probability * (1 - probability)).sqrt()[:, None])
    largest = values.topk(min(MAX_RANK, len(values)))
    removed = rest * largest.values / (largest.values + l2)  # of the variance along each direction
    basis = vectors[:, largest.indices] * removed.sqrt()
    return HeadPosterior(rest, basis if pairs.space is None else pairs.space @ basis)


# --- the heads of a model ---------------------------------------------------------------------------------------------


class FoldedHead(NamedTuple):
    """An exactly fitted head with its weights by fold, toward which other heads may be pulled; see `Prior`."""

    head: Head
    folds: FoldWeights
    preferred: bool = False

    def prior(self, scale: Tensor) -> Prior:
        """Return its weights (D,), and those by fold, in the units of another normalizer's scale (D,)."""
        ratio = scale / self.head.normalizer.scale.cpu()
        return Prior(self.head.score.weight[0].cpu() * ratio, self.folds.weights.cpu() * ratio, self.preferred)


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
        general: the general model's head, toward which the penalty may pull.
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
def out_of_fold(head: Head, folds: FoldWeights, examples: Examples, vectors: Vectors, seed: int) -> dict[str, Tensor]:
    """Return key → scores (N,) of each example's responses by the head that was fitted without the example's fold.

    They are computed on the CPU, where embeddings and weights by fold are.
    """
    normalizer, weights = copy.deepcopy(head.normalizer).cpu(), folds.weights.cpu()
    return {e.key: normalizer(vectors[e.key].float()) @ weights[fold_of(e.prompt, seed)] for e in examples}


def exact_metrics(fits: Sequence[LinearFit], names: Sequence[str] = ()) -> StepMetrics:
    """Return the mean out-of-fold loss and accuracy, and each fit's figures if names are given."""
    metrics = {field: sum(getattr(fit, field) for fit in fits) / len(fits) for field in ("loss", "accuracy")}
    metrics |= {"steps": 0.0}
    for name, fit in zip(names, fits, strict=False):
        metrics |= {f"{field}/{name}": getattr(fit, field) for field in ("loss", "accuracy", "l2")}
    return metrics if names else metrics | {"l2": fits[0].l2, "pulled": float(fits[0].pulled)}


def head_state(head: Head, fit: LinearFit, prefix: str = "head") -> State:
    """Return the state of an exactly fitted head, with its weights by fold and its posterior."""
    return {f"{prefix}.{name}": t for name, t in head.state_dict().items()} | fold_state(fit, prefix)


def fold_state(fit: LinearFit, prefix: str) -> State:
    """Return what `Training.read` reads: weights by fold, accuracy and posterior."""
    folds = {f"{prefix}_folds": fit.fold_weights, f"{prefix}_accuracy": torch.tensor(fit.accuracy)}
    return folds | posterior_state(fit.posterior, prefix)
