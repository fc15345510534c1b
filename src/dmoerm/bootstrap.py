"""Bootstrap over prompts, and over training runs where there are several, for all confidence intervals.

Prompts are resampled with replacement, because pairs or samples of one prompt are not independent (cluster bootstrap).
Statistics are sums over prompts, so all resamples of all columns are one matrix product of counts (B, P) and rows
(P, C). `scipy.stats.bootstrap` resamples single observations and calls a function for each resample.

Several runs (seeds) have other training parts, label noise and starts. Runs are resampled as well, so that an interval
includes their spread.

Shapes: P prompts, C columns, B resamples, S runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
_BLOCK = 2_000_000  # counts in memory at a time: 16 MB


def resampled_sums(columns: Array, seed: int | Sequence[int] = 0, resamples: int = RESAMPLES) -> Array:
    """Sum the rows of `columns` (P, C) over B resamples of the prompts: (B, C)."""
    rng, prompts = np.random.default_rng(seed), len(columns)
    block = max(1, _BLOCK // prompts)
    return np.concatenate(
        [
            rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(block, resamples - start)) @ columns
            for start in range(0, resamples, block)
        ]
    )


def resampled_means(columns: Array, seed: int | Sequence[int] = 0, resamples: int = RESAMPLES) -> Array:
    """Average the rows of `columns` (P, C) over B resamples of the prompts: (B, C)."""
    return resampled_sums(columns, seed, resamples) / len(columns)


def mean_interval(columns: Array, seed: int | Sequence[int] = 0, resamples: int = RESAMPLES) -> Array:
    """Return the 95 % interval (C, 2) of the mean of each column."""
    return interval(resampled_means(columns, seed, resamples))


def run_weights(runs: int, seed: int | Sequence[int] = 0, resamples: int = RESAMPLES) -> Array:
    """Return the weights (S, B) of the runs in resamples of them; each column sums to 1, and one run has weight 1.

    The variance of a mean of S resampled runs is (S − 1) / S of what it estimates, so the deviations from 1 / S are
    larger by the root of its inverse, and a weight may be negative.
    """
    counts = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples).T
    return 1 / runs + (counts - 1) / runs * np.sqrt(runs / max(runs - 1, 1))


def interval(samples: Array) -> Array:
    """Return the central 95 % interval of resamples (B,) or (B, C): (2,) or (C, 2)."""
    return np.quantile(samples, [0.025, 0.975], axis=0).T
