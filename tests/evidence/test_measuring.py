"""What length is worth to the initial policy's responses, and gold without it."""

from __future__ import annotations

import numpy as np
import pytest

from evidence.policies import _policy_run
from evidence.rl.measuring import slope_within
from evidence.rl.policy_settings import RLConfig
from evidence.rl.rewards import Scale
from evidence.rl.trajectory import Point, Trajectory


def point(step: int, gold: float, length: float, slope: float | None) -> Point:
    fields = {"proxy": 0.0, "gold_error": 0.0, "gold_by_task": {}, "kl": 0.0, "kl_error": 0.0, "kl_k3": 0.0}
    shares = {"ended": 1.0, "distinct": 1.0, "empty": 0.0}
    return Point.model_validate(
        {"step": step, "gold": gold, "length": length, "gold_per_token": slope, **fields, **shares}
    )


def trajectory(*points: Point) -> Trajectory:
    scale = Scale(mean=0.0, std=1.0, lowest=-1.0)
    return Trajectory(method="m", policy="p", parameters=1, settings=RLConfig(), scale=scale, points=points)


def test_the_slope_is_within_tasks() -> None:
    """A task of long responses with low gold does not turn the sign."""
    tasks, lengths = ["a"] * 3 + ["b"] * 3, [10, 20, 30, 60, 70, 80]
    gold = [0.5, 0.6, 0.7, 0.1, 0.2, 0.3]
    assert slope_within(tasks, lengths, gold) == pytest.approx(0.01)
    assert np.polyfit(lengths, gold, 1)[0] < 0
    assert slope_within(["a", "b"], [5, 7], [0.1, 0.9]) == 0


def test_longer_responses_that_are_as_good_as_longer_ones_were_are_not_better() -> None:
    first = point(0, 0.3, 50, 0.01)
    longer, better = point(10, 0.5, 70, 0.5), point(10, 0.5, 50, None)
    found = trajectory(first, longer)
    assert found.gold_same_length(first) == 0.3
    assert found.gold_same_length(longer) == pytest.approx(0.3)
    assert trajectory(first, better).gold_same_length(better) == 0.5


def test_the_results_of_a_run_have_gold_at_the_same_length() -> None:
    run = _policy_run("noisy", "general", trajectory(point(0, 0.3, 50, 0.01), point(10, 0.5, 70, 0.5)))
    assert [p.gold_same_length for p in run.points] == pytest.approx([0.3, 0.3])


def test_points_of_earlier_versions_are_read() -> None:
    old = point(0, 0.3, 50, None).model_dump(exclude={"gold_per_token"})
    assert Point.model_validate(old).gold_per_token is None


def test_files_of_earlier_versions_have_no_slope() -> None:
    first = point(0, 0.3, 50, None)
    assert trajectory(first).gold_same_length(first) is None
