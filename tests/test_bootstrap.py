"""The bootstrap over prompts: its resamples, blocks and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from dmoerm.bootstrap import Array, expanded_tail, interval, resampled_sums, run_weights


def mean_interval(columns: Array, seed: int = 0, resamples: int = 2000) -> Array:
    """Return the 95 % interval (C, 2) of the mean of each column (P, C) over prompts."""
    return interval(resampled_sums(columns, seed, resamples) / len(columns), len(columns))


def test_a_resample_draws_as_many_prompts_as_there_are() -> None:
    columns = np.ones((7, 2))
    assert resampled_sums(columns, resamples=50) == pytest.approx(np.full((50, 2), 7.0))


def test_the_interval_of_the_mean() -> None:
    columns = np.random.default_rng(1).normal([0.0, 5.0], size=(400, 2))
    found = mean_interval(columns)
    assert found.shape == (2, 2)
    for column, (low, high) in zip(columns.T, found, strict=True):
        error = 1.96 * column.std() / 20
        assert (low, high) == pytest.approx((column.mean() - error, column.mean() + error), abs=0.02)
    assert mean_interval(columns, seed=1) != pytest.approx(found, abs=1e-12)
    assert (mean_interval(columns, seed=1) == mean_interval(columns, seed=1)).all()


def test_the_weights_of_runs_have_the_spread_of_their_mean() -> None:
    """The weighted means of independent runs vary as much as the mean of so many runs does, times Student's factor."""
    assert run_weights(1, resamples=3).tolist() == [[1, 1, 1]]
    values = np.random.default_rng(0).normal(size=(2000, 5))
    weights = run_weights(5, resamples=500)
    assert weights.sum(0) == pytest.approx(np.ones(500))
    variance = (values @ weights).var(axis=1).mean()  # over resamples, averaged over 2,000 sets of five runs
    assert variance == pytest.approx(1 / 5 * (2.776 / 1.96) ** 2, rel=0.05)


@pytest.mark.parametrize(
    ("prompts", "samples", "least"),
    [
        (5, 1, 0.89),
        (10, 8, 0.92),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((40, 8, 0.93), (150, 4, 0.93))),
    ],
)
def test_the_interval_covers_the_truth(prompts: int, samples: int, least: float) -> None:
    """Samples of a prompt depend on each other, and prompts differ by a skewed amount; the true mean is 1."""
    random = np.random.default_rng(prompts)
    covered = []
    for trial in range(1500):
        levels = random.gamma(4.0, 0.25, size=(prompts, 1))
        gold = levels + random.normal(0, 0.2, size=(prompts, samples))
        ((low, high),) = mean_interval(gold.mean(1, keepdims=True), seed=trial, resamples=500)
        covered.append(low <= 1 <= high)
    assert least < np.mean(covered) < 0.97


def test_few_prompts_have_a_longer_interval() -> None:
    assert [round(expanded_tail(prompts), 4) for prompts in (1, 5, 40, 10_000)] == [0.025, 0.001, 0.0203, 0.025]
