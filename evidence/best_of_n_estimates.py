"""Best-of-n: the human grade or gold reward of the response that a proxy reward picks from n.

From N ≥ n samples of a prompt, sorted by the proxy (1 … N, the best last), the unbiased estimate of the score of the
best of n is Σ_{i=n..N} C(i−1, n−1) / C(N, n) · score_i. The binomials are computed in log space, so n and N may be
large. Choosing the best of n moves the policy by at most KL = log n − (n−1)/n nats (arXiv 2210.10760; 2310.02743).

Shapes: S seeds, P prompts, N samples of one prompt, M values of n, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from dmoerm.bootstrap import interval
from dmoerm.errors import DataError
from dmoerm.evaluation.metrics import PairCounts, resample
from dmoerm.evaluation.results import ResultModel

Array = NDArray[np.float64]
_RESAMPLES = 1000
_MIN_PROMPTS = 3  # fewer do not show how prompts differ


class CurveFit(ResultModel):
    """A fit R(d) = d (α − β d) for best-of-n or d (α − β log d) for a policy; d = √KL, R is the gain over d = 0."""

    alpha: float
    beta: float
    peak: float | None
    """The d at which the fit is highest, or None if it does not fall."""
    peak_low: float | None = None
    peak_high: float | None = None
    value: float | None = None
    """The fit's value at its peak."""


class MethodCurve(ResultModel):
    """Best-of-n by one method, the mean over prompts and seeds."""

    proxy: tuple[float, ...]
    """The method's reward in standard deviations of the prompt's samples."""
    gold: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """`low` to `high` is the 95 % interval of `gold` by bootstrap over prompts and seeds."""
    fit: CurveFit | None
    falls_after: int | None
    """The n of the highest gold, if a larger n is below it with 95 % confidence."""


def best_of_n_kl(n: ArrayLike) -> Array:
    """Return log n − (n − 1) / n, in nats."""
    n = np.asarray(n, dtype=float)
    return np.log(n) - (n - 1) / n


def best_of_n(proxy: ArrayLike, scores: ArrayLike, ns: Sequence[int]) -> Array:
    """Estimate the score of the sample with the highest proxy reward among n drawn without replacement, (M,).

    Args:
        proxy: (N,), the rewards by which the best is chosen; samples of equal proxy are equally likely.
        scores: (N,), gold, or the proxy itself.
        ns: the values of n, each 1 … N.

    Raises:
        DataError: fewer than two samples, unequal lengths, a number that is not finite, an n that is out of range.
    """
    proxy, scores = np.asarray(proxy, dtype=float), np.asarray(scores, dtype=float)
    total = len(proxy)
    if total < 2 or len(scores) != total:
        shape = f"{total} proxy rewards and {len(scores)} scores"
        raise DataError("best-of-n needs two samples or more, each with both", field="scores", value=shape)
    if bad := [i for i in range(total) if not np.isfinite([proxy[i], scores[i]]).all()]:
        rewards = (float(proxy[bad[0]]), float(scores[bad[0]]))
        raise DataError(f"a reward of sample {bad[0]} is not finite", field="scores", value=rewards)
    if wrong := [n for n in ns if not 1 <= n <= total]:
        raise DataError(
            f"cannot be estimated from {total} samples", field="n", value=wrong[0], hint=f"use 1 to {total}"
        )
    order = np.argsort(proxy, kind="stable")
    _, index, counts = np.unique(proxy[order], return_inverse=True, return_counts=True)
    scores = (np.bincount(index, scores[order]) / counts)[index]  # equal proxies share their mean
    estimates = []
    for n in ns:
        i = np.arange(n, total + 1, dtype=float)  # the weight of the i-th is C(i−1, n−1) / C(N, n), and 0 below n
        logs = _log_choose(i - 1, n - 1) - _log_choose(np.array(float(total)), n)
        estimates.append(np.exp(logs) @ scores[n - 1 :])
    return np.array(estimates)


def _log_choose(n: Array, k: int) -> Array:
    return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)


# --- curves --------------------------------------------------------------------------------------------------------


def fit_curve(kind: Literal["bon", "rl"], d: ArrayLike, gains: ArrayLike) -> CurveFit:
    """Fit R(d), d = √KL, through the origin by least squares; `gains` are rewards minus those at d = 0.

    Args:
        kind: `bon`: R(d) = d (α − β d); `rl`: R(d) = d (α − β log d).

    Raises:
        DataError: fewer than three points with d > 0, or a number that is not finite.
    """
    d, gains = np.asarray(d, dtype=float), np.asarray(gains, dtype=float)
    kept = d > 0
    if kept.sum() < 3 or not np.isfinite(gains[kept]).all():
        raise DataError("a curve needs three finite points or more with KL > 0", field="d", value=int(kept.sum()))
    coefficients, *_ = np.linalg.lstsq(_design(kind, d[kept]), gains[kept], rcond=None)
    alpha, beta = map(float, coefficients)
    if beta <= 0:
        return CurveFit(alpha=alpha, beta=beta, peak=None)
    # The d ≥ 0 at which R is highest: α / (2β), or exp(α/β − 1); 0 if R falls from the start.
    peak = max(alpha, 0.0) / (2 * beta) if kind == "bon" else float(np.exp(min(alpha / beta - 1, 700.0)))
    value = float((_design(kind, np.array([peak])) @ coefficients)[0])
    return CurveFit(alpha=alpha, beta=beta, peak=peak, value=value)


def _design(kind: str, d: Array) -> Array:
    return np.stack([d, -d * d if kind == "bon" else -d * np.log(np.maximum(d, 1e-300))], axis=1)


def summarize_prompts(proxy: Array, gold: Array, ns: Sequence[int], seed: int = 0) -> MethodCurve:
    """Average best-of-n over prompts and seeds, with 95 % intervals over both and the curve of the gain in gold.

    Args:
        proxy, gold: (S, P, M), proxy and gold of the best of each n on each prompt by the model of each seed; NaN where
            a seed does not have the prompt.
        ns: ascending.
        seed: seed of the bootstrap.
    """
    means, prompts = resampled_gold(gold, seed), gold.shape[1]
    low, high = interval(means, prompts).T
    mean = np.nanmean(gold, axis=1).mean(0)
    best = int(mean.argmax())
    falls = any(interval(means[:, k] - means[:, best], prompts)[1] < 0 for k in range(best + 1, len(ns)))
    return MethodCurve(
        proxy=tuple(np.nanmean(proxy, axis=1).mean(0).tolist()),
        gold=tuple(mean.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        fit=_curve(np.sqrt(best_of_n_kl(ns)), mean, means),
        falls_after=ns[best] if falls and prompts >= _MIN_PROMPTS else None,
    )


def resampled_gold(gold: Array, seed: int = 0) -> Array:
    """Return the mean (B, M) of gold (S, P, M) over resamples of the prompts and of the seeds; NaN is left out."""
    rows = {str(k): np.nan_to_num(gold[:, :, k]) for k in range(gold.shape[2])}
    present = (~np.isnan(gold[:, :, 0])).astype(float)
    drawn = resample(PairCounts([], present, rows), seed, _RESAMPLES)
    return np.stack([drawn[name] for name in rows], axis=1)


def _curve(d: Array, gold: Array, means: Array) -> CurveFit | None:
    if (d > 0).sum() < 3:
        return None
    curve = fit_curve("bon", d, gold - gold[0])
    peaks = [fit_curve("bon", d, row - row[0]).peak for row in means[:200]]
    known = [peak for peak in peaks if peak is not None]
    if curve.peak is None or len(known) < 0.95 * len(peaks):
        return curve
    low, high = interval(np.array(known))
    return curve.model_copy(update={"peak_low": float(low), "peak_high": float(high)})
