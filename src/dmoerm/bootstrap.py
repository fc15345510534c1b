"""The bootstrap over prompts that every interval is from.

It resamples prompts, with replacement: pairs or samples of one prompt are not independent (a cluster bootstrap).
Statistics are sums over prompts, so a resample is a row of counts times the prompts' rows: one matrix product for all
resamples and columns. `scipy.stats.bootstrap` takes single observations and calls a function of them.

Shapes: P prompts, C columns, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
_BLOCK = 2_000_000  # counts held at once: 16 MB


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
    """The same for means over the prompts."""
    return resampled_sums(columns, seed, resamples) / len(columns)


def mean_interval(columns: Array, seed: int | Sequence[int] = 0, resamples: int = RESAMPLES) -> Array:
    """The 95 % interval (C, 2) of each column's mean."""
    return interval(resampled_means(columns, seed, resamples))


def interval(samples: Array) -> Array:
    """The middle 95 % of resamples (B,) or (B, C): (2,) or (C, 2)."""
    return np.quantile(samples, [0.025, 0.975], axis=0).T
