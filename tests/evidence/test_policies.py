"""Summaries of optimized policies."""

from __future__ import annotations

import math

import pytest

from dmoerm.errors import DataError
from evidence.policies import PolicyRun, differences, summarize
from evidence.rl import Point


def run(method: str, seed: int, gold: list[float], beta: float = 0.0, kl: list[float] | None = None) -> PolicyRun:
    kl = kl or [float(i * i) for i in range(len(gold))]
    points = [
        Point(step=10 * i, kl=k, proxy=0.0, gold=g, gold_per_token=0.0, gold_same_length=g / 2, length=5.0, ended=1.0)
        for i, (k, g) in enumerate(zip(kl, gold, strict=True))
    ]
    return PolicyRun(condition="noisy", method=method, beta=beta, seed=seed, points=tuple(points))


def test_seeds_are_averaged_step_by_step() -> None:
    (found,) = summarize([run("general", 0, [0.2, 0.6, 0.3]), run("general", 1, [0.2, 0.4, 0.5])])
    assert (found.start, found.peak, found.peak_step, found.end) == pytest.approx((0.2, 0.5, 10, 0.4))
    assert found.fall == pytest.approx(0.1)
    assert (found.seeds, found.kl, found.end_same_length) == (2, 4.0, pytest.approx(0.2))


def test_three_seeds_have_students_interval_of_the_fall() -> None:
    runs = [run("general", seed, [0.2, 0.5, 0.5 - fall]) for seed, fall in enumerate((0.1, 0.2, 0.3))]
    assert summarize(runs[:2])[0].fall_low is None
    assert summarize([run("general", 0, [0.1, 0.2])])[0].fit is None, "too few points"
    (found,) = summarize(runs)
    assert found.fall == pytest.approx(0.2)
    assert (found.fall_low, found.fall_high) == pytest.approx((0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)  # 4.303 · 0.1/√3


def test_the_curve_of_reinforcement_learning_is_recovered() -> None:
    """R(d) = d (0.3 − 0.1 log d) has its peak at exp(2)."""
    d = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    gold = [0.5 + (x * (0.3 - 0.1 * math.log(x)) if x else 0.0) for x in d]
    (found,) = summarize([run("general", 0, gold, kl=[x * x for x in d])])
    assert found.fit is not None
    assert (found.fit.alpha, found.fit.beta, found.fit.peak) == pytest.approx((0.3, 0.1, math.exp(2)))


def test_differences_are_taken_seed_by_seed_at_the_same_weight() -> None:
    runs = [run("general", 0, [0, 1.0]), run("general", 1, [0, 2.0]), run("general", 0, [0, 9.0], beta=0.1)]
    runs += [run("dmoerm", 0, [0, 1.5]), run("dmoerm", 1, [0, 4.0])]
    (found,) = differences(runs)["noisy"].items()
    assert found[0] == "dmoerm - general (0)"
    assert (found[1].value, found[1].low, found[1].high) == (1.25, 1.25, 1.25)


def test_three_seeds_give_a_difference_students_interval() -> None:
    runs = [run("general", seed, [0, 0.0]) for seed in range(3)]
    runs += [run("dmoerm", seed, [0, end]) for seed, end in enumerate((1.0, 2.0, 3.0))]
    found = differences(runs)["noisy"]["dmoerm - general (0)"]
    half = 4.302652729911275 / 3**0.5  # the 0.975 quantile with two degrees of freedom, times the standard error
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_different_steps_are_refused() -> None:
    with pytest.raises(DataError, match="different steps"):
        summarize([run("general", 0, [0, 1.0]), run("general", 1, [0, 1.0, 2.0])])
