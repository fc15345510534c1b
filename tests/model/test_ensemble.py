"""Combined scores of several models: scales and offsets do not matter, differences and disagreement do."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.model.ensemble import UWO_WEIGHT, combine_members, combine_scores
from dmoerm.scores import Score

WAYS = ("mean", "wco", "uwo")
REWARDS = st.lists(st.floats(-3, 3), min_size=3, max_size=3)


def member(
    rewards: list[float],
    temperature: float = 1.0,
    task: str | None = "chat",
    route: dict[str, float] | None = None,
    **capabilities: float,
) -> list[Score]:
    """One model's scores of a prompt's responses; every response has the same capabilities."""
    return [Score(reward, task, route or {"chat": 1.0}, capabilities, 0.5, temperature) for reward in rewards]


def differences(scores: list[Score]) -> list[float]:
    return [score.reward - scores[0].reward for score in scores]


def log_odds(a: Score, b: Score) -> float:
    return (a.reward - b.reward) / a.temperature


def test_the_formulas() -> None:
    rewards = torch.tensor([[1.0, 2.0], [5.0, 2.0]])  # centered: −0.5, 0.5 and 1.5, −1.5; the centers' mean is 2.5
    assert combine_members(rewards, "mean").tolist() == [3.0, 2.0]
    assert combine_members(rewards, "wco").tolist() == [2.0, 1.0]
    assert combine_members(rewards, "uwo").tolist() == [3.0 - UWO_WEIGHT, 2.0 - UWO_WEIGHT]


@pytest.mark.parametrize("combination", ["mean", "wco", "uwo"])
def test_a_members_level_on_a_prompt_has_no_effect(combination: str) -> None:
    """Preferences determine a member's rewards up to a constant per prompt."""
    rewards = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = rewards + torch.tensor([[3.0], [-5.0], [0.0], [2.0]])
    first, second = combine_members(rewards, combination), combine_members(shifted, combination)
    torch.testing.assert_close(first - first.mean(), second - second.mean())


@given(st.lists(REWARDS, min_size=1, max_size=4), st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_the_mean_has_the_mean_of_the_log_odds(rows: list[list[float]], temperatures: list[float]) -> None:
    members = [member(row, t) for row, t in zip(rows, temperatures, strict=False)]
    first, second, _ = combine_scores(members, "mean")
    expected = fmean(log_odds(scores[0], scores[1]) for scores in members)
    assert log_odds(first, second) == pytest.approx(expected, abs=1e-9)
    assert first.win_probability(second) == pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-9)


@given(REWARDS, REWARDS, st.floats(-5, 5))
@pytest.mark.parametrize("combination", WAYS)
def test_a_models_level_changes_no_difference(
    combination: str, first: list[float], second: list[float], shift: float
) -> None:
    plain = combine_scores([member(first), member(second)], combination)
    shifted = combine_scores([member(first), member([reward + shift for reward in second])], combination)
    assert differences(shifted) == pytest.approx(differences(plain), abs=1e-9)
    assert [s.uncertainty for s in shifted] == pytest.approx([s.uncertainty for s in plain], abs=1e-9)


@given(REWARDS, st.floats(0.1, 10))
@pytest.mark.parametrize("combination", WAYS)
def test_models_that_agree_keep_their_rewards(combination: str, rewards: list[float], temperature: float) -> None:
    actual = combine_scores([member(rewards, temperature, empathy=0.25)] * 3, combination)
    assert [score.reward for score in actual] == pytest.approx(rewards, abs=1e-9)
    for score in actual:
        assert (score.task, score.route, score.capabilities) == ("chat", {"chat": 1.0}, {"empathy": 0.25})
        assert score.temperature == pytest.approx(temperature)
        assert score.uncertainty == pytest.approx(0, abs=1e-9)


def test_disagreement_lowers_wco_and_uwo() -> None:
    """The first two responses have equal means; the models agree only on the second."""
    members = [member([2.0, 1.0, -1.0, -2.0]), member([0.0, 1.0, -1.0, 0.0])]
    mean, wco, uwo = ([score.reward for score in combine_scores(members, combination)] for combination in WAYS)
    assert mean == pytest.approx([1, 1, -1, -1])
    assert wco == pytest.approx([0, 1, -1, -2])
    assert uwo == pytest.approx([1 - UWO_WEIGHT, 1, -1, -1 - UWO_WEIGHT])
    assert [score.uncertainty for score in combine_scores(members, "mean")] == pytest.approx([1, 0, 0, 1])


@pytest.mark.parametrize("combination", WAYS)
def test_a_single_response_has_the_mean_and_no_uncertainty(combination: str) -> None:
    (actual,) = combine_scores([member([2.0]), member([-1.0])], combination)
    assert (actual.reward, actual.uncertainty) == (pytest.approx(0.5), None)


def test_capabilities_are_those_of_models_that_chose_the_task() -> None:
    chat = {"chat": 0.8, "facts": 0.2}
    members = [
        member([1.0, 0.0], task="chat", route=chat, empathy=1.0, wit=3.0),
        member([1.0, 0.0], task="facts", route={"chat": 0.4, "facts": 0.6}, empathy=9.0),
        member([1.0, 0.0], task="chat", route={"chat": 0.6, "facts": 0.2, "code": 0.2}, empathy=2.0),
    ]
    actual = combine_scores(members, "mean")[0]
    assert actual.task == "chat"
    assert actual.capabilities == {"empathy": 1.5}, "of the two that scored as chat, the name that both have"
    assert actual.route == pytest.approx({"chat": 0.6, "facts": 1 / 3, "code": 0.2 / 3})
    general = combine_scores([member([1.0], task=None, route=chat), members[0][:1]], "mean")[0]
    assert (general.task, general.capabilities) == (None, {}), "of equally many the first"
