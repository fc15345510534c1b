"""Best-of-n: the estimator against counting, its edges, and the curves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoerm.errors import DataError
from evidence.best_of_n_estimates import MethodCurve, best_of_n, best_of_n_kl, fit_curve, summarize_prompts

numbers = st.floats(-10, 10).map(lambda x: round(x, 3))


def counted(proxy, gold, n: int) -> float:
    """The mean over all subsets of size n; samples of equal proxy share the pick."""
    picks = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        tied = [gold[i] for i in subset if proxy[i] == best]
        picks.append(sum(tied) / len(tied))
    return sum(picks) / len(picks)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), numbers), min_size=2, max_size=7))
def test_it_is_the_mean_over_all_subsets(samples) -> None:
    proxy, gold = zip(*samples, strict=True)
    ns = list(range(1, len(samples) + 1))
    assert best_of_n(proxy, gold, ns) == pytest.approx([counted(proxy, gold, n) for n in ns], abs=1e-9)


def test_many_samples_neither_overflow_nor_lose_mass() -> None:
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=50_000)
    found = best_of_n(proxy, np.ones(50_000), [1, 2, 1000, 12_500, 50_000])
    assert found == pytest.approx(np.ones(5), rel=1e-6)
    normal = best_of_n(proxy, proxy, [100])[0]
    assert normal == pytest.approx(2.5076, abs=0.05)  # the expected maximum of 100 standard normals


def test_the_kl_of_best_of_n() -> None:
    assert best_of_n_kl([1, 2]) == pytest.approx([0, math.log(2) - 0.5])


@pytest.mark.parametrize(
    ("proxy", "gold", "ns", "message"),
    [
        ([1, 2], [1, 2], [3], "n: cannot be estimated from 2 samples"),
        ([1, 2], [1, 2], [0], "n: cannot be estimated"),
        ([1], [1], [1], "best-of-n needs two samples or more"),
        ([1, math.nan], [1, 2], [1], r"a reward of sample 1 is not finite \(got \(nan, 2"),
        ([1, 2], [1, math.inf], [1], "a reward of sample 1 is not finite"),
        ([1, 2, 3], [1, 2], [1], "3 proxy rewards and 2 scores"),
    ],
)
def test_invalid_input_is_refused(proxy, gold, ns, message) -> None:
    with pytest.raises(DataError, match=message):
        best_of_n(proxy, gold, ns)


@pytest.mark.parametrize(("kind", "peak"), [("bon", 2.5), ("rl", math.exp(4))])
def test_the_curve_is_recovered(kind, peak) -> None:
    d = np.linspace(0, 4, 9)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = d * (1.0 - 0.2 * (d if kind == "bon" else np.where(d > 0, np.log(d), 0)))
    found = fit_curve(kind, d, gains)
    assert (found.alpha, found.beta) == pytest.approx((1.0, 0.2))
    assert found.peak == pytest.approx(peak)
    assert found.value == pytest.approx(peak * (1.0 - 0.2 * (peak if kind == "bon" else math.log(peak))))


def test_curves_that_only_rise_or_only_fall() -> None:
    d = np.linspace(1, 4, 7)
    assert fit_curve("bon", d, d * (1 + 0.1 * d)).peak is None
    assert fit_curve("bon", d, d * (-0.1 - 0.2 * d)).peak == 0
    with pytest.raises(DataError, match="three finite points"):
        fit_curve("bon", [0, 1, 2], [0, 1, 2])


def curve(overoptimized: bool, ns: list[int], prompts: int = 60, count: int = 400) -> MethodCurve:
    """Return the curve of a proxy with rare, badly wrong favorites, or of a faithful one."""
    rng = np.random.default_rng(1)
    golds = rng.normal(size=(prompts, count))
    proxies = golds + 0.3 * rng.normal(size=golds.shape)
    if overoptimized:
        wrong = rng.random(golds.shape) < 0.02
        golds = np.where(wrong, -2.0, golds)
        proxies = np.where(wrong, 4.0, proxies)
    gold = np.stack([best_of_n(proxy, row, ns) for proxy, row in zip(proxies, golds, strict=True)])
    return summarize_prompts(np.stack([best_of_n(proxy, proxy, ns) for proxy in proxies])[None], gold[None], ns)


def test_overoptimization_is_detected() -> None:
    ns = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    bad, good = curve(True, ns), curve(False, ns)
    assert good.falls_after is None
    assert bad.falls_after in (4, 8, 16)
    assert bad.proxy[-1] > bad.proxy[0]
    assert all(low <= gold <= high for low, gold, high in zip(bad.low, bad.gold, bad.high, strict=True))
    assert bad.fit is not None
    assert bad.fit.peak_low <= bad.fit.peak <= bad.fit.peak_high
    expected = fit_curve("bon", np.sqrt(best_of_n_kl(ns)), np.array(bad.gold) - bad.gold[0])
    assert bad.fit.model_copy(update={"peak_low": None, "peak_high": None}) == expected


@pytest.mark.parametrize("level", [-10.0, 0.0, 10.0])
def test_a_fall_does_not_depend_on_the_level_of_the_gold(level: float) -> None:
    gold = level + np.array([[0.0, 1.0, 0.5], [0.0, 1.2, 0.5], [0.1, 1.0, 0.4]])
    assert summarize_prompts(gold[None], gold[None], [1, 2, 4]).falls_after == 2
    rising = level + np.array([[0.0, 1.0, 1.5], [0.0, 1.2, 1.5], [0.1, 1.0, 1.4]])
    assert summarize_prompts(rising[None], rising[None], [1, 2, 4]).falls_after is None
    level_at_the_end = level + np.array([[0.0, 1.0, 1.0]] * 3)
    assert summarize_prompts(level_at_the_end[None], level_at_the_end[None], [1, 2, 4]).falls_after is None, (
        "equal is no fall"
    )
