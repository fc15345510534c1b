"""Ensembles combine their members' rewards within a prompt: scales are given, levels do not matter."""

from __future__ import annotations

import numpy as np
import pytest

from evidence.methods.ensembles import _combine


def test_the_formulas() -> None:
    rewards = np.array([[1.0, 2.0], [5.0, 2.0]])  # centered: −0.5, 0.5 and 1.5, −1.5; the centers' mean is 2.5
    assert _combine("mean", rewards).tolist() == [3.0, 2.0]
    assert _combine("wco", rewards).tolist() == [2.0, 1.0]
    assert _combine("uwo", rewards).tolist() == [2.5, 1.5]


@pytest.mark.parametrize("combination", ["mean", "wco", "uwo"])
def test_a_members_level_on_a_prompt_has_no_effect(combination: str) -> None:
    rewards = np.random.default_rng(0).normal(size=(4, 6))
    shifted = rewards + np.array([[3.0], [-5.0], [0.0], [2.0]])
    first, second = _combine(combination, rewards), _combine(combination, shifted)
    np.testing.assert_allclose(first - first.mean(), second - second.mean())
