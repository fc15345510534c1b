"""The range of rewards, win probabilities, and the queries that `score` makes of its arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.errors import DataError
from dmoerm.schema import Message
from dmoerm.scores import MIN_REWARD, Score, as_queries, bound_reward, group_by_prompt, log_columns, unbound_reward

SAMPLES = st.lists(
    st.tuples(st.sampled_from([None, "a", "b"]), st.sampled_from(["p", "q"]), st.sampled_from(["", " \n", "x", "y"]))
)
VALUES = st.floats(-1e4, 1e4)


def score(value: float, temperature: float = 1.5) -> Score:
    return Score(bound_reward(value), "chat", {"chat": 1.0}, {}, None, temperature)


@given(VALUES)
def test_the_bound_has_an_exact_inverse_and_keeps_what_is_within_ten(value):
    assert unbound_reward(bound_reward(value)) == pytest.approx(value, rel=1e-9, abs=1e-12)
    if abs(value) <= 10:
        assert bound_reward(value) == value


@given(VALUES, VALUES)
def test_the_bound_keeps_the_order_in_float32(first, second):
    low, high = sorted((first, second))
    assert bound_reward(low) <= bound_reward(high)
    if high - low > 1e-2 * max(1.0, abs(high), abs(low)):
        assert np.float32(bound_reward(low)) < np.float32(bound_reward(high))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_only_an_empty_response_has_the_lowest_reward(value):
    assert MIN_REWARD < np.float32(bound_reward(value)) < -MIN_REWARD
    assert not score(value).empty


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stays_so(value):
    assert not math.isfinite(bound_reward(value))


@given(VALUES, VALUES, st.floats(0.05, 20))
def test_win_probabilities_are_those_of_the_unbounded_values(first, second, temperature):
    expected = 0.5 + 0.5 * math.tanh((first - second) / temperature / 2)
    probability = score(first, temperature).win_probability(score(second, temperature))
    assert probability == pytest.approx(expected, abs=1e-6)


def test_an_empty_response_loses_to_any_other():
    empty, worst = Score(MIN_REWARD, "chat", {}, {}, None, 1.0), score(-1e9)
    assert empty.empty
    assert (worst.win_probability(empty), empty.win_probability(worst)) == (1.0, 0.0)
    assert empty.win_probability(empty) == 0.5


def test_rewards_outside_the_range_compare_too():
    """Servers of older versions send them."""
    first, second = (Score(reward, None, {}, {}, None, 1.0) for reward in (-24.0, -25.0))
    assert first.win_probability(second) == pytest.approx(1 / (1 + math.exp(-1)))


@given(SAMPLES)
def test_each_prompt_has_one_query_with_all_its_responses(samples):
    groups = group_by_prompt(samples)
    assert len({(query.task, query.prompt) for query, _ in groups}) == len(groups)
    placed = {at: (q.task, q.prompt, r) for q, indices in groups for at, r in zip(indices, q.responses, strict=True)}
    assert placed == dict(enumerate(samples))


def test_conversations_that_are_equal_are_one_prompt():
    turns = [(Message(role="user", content="Hi!"),) for _ in range(2)]
    ((query, indices),) = group_by_prompt([(None, turns[0], "a"), (None, turns[1], "b")])
    assert (query.prompt, query.responses, indices) == (turns[0], ("a", "b"), [0, 1])
    with pytest.raises(DataError, match="prompt: is empty"):
        group_by_prompt([(None, "", "a")])


@pytest.mark.parametrize(
    ("prompt", "responses", "field"),
    [
        (None, ["a", "b"], "prompt"),
        (7, ["a"], "prompt"),
        ([None], ["a"], "prompt"),
        ("Hi", None, "responses"),
        ("Hi", 3.5, "responses"),
        ("Hi", [None], "responses"),
        ("Hi", ["a", 5], "responses"),
        (["Hi", None], [["a"], ["b"]], "prompt"),
        (["Hi", "Ho"], [["a"], None], "responses"),
        ({"role": "user", "content": "Hi"}, ["a"], "prompt"),
    ],
)
def test_arguments_of_another_type_are_a_data_error(prompt, responses, field):
    with pytest.raises(DataError) as caught:
        as_queries(prompt, responses)
    assert (caught.value.field or "").startswith(field)


@pytest.mark.parametrize(
    "tasks",
    [
        {"chat": ["wit", "tone"], "qa": ["wit"]},
        {"a": ["b/c"], "a/b": ["c"], "a%2Fb": ["c"]},
        {"task": ["qa", "wit"], "qa": ["task"], "%task": ["qa"]},
    ],
)
def test_no_two_log_columns_are_the_same(tasks):
    samples = [(task, name) for task, names in tasks.items() for name in names]
    scores = [
        Score(reward=0.0, task=task, route={}, capabilities={name: 1.0 + i}, uncertainty=None, temperature=1.0)
        for i, (task, name) in enumerate(samples)
    ]
    columns = log_columns(scores, tasks)
    assert len(columns) == 3 + len(tasks) + len(samples)
    for i in range(len(samples)):
        assert sorted(values[i] for values in columns.values() if values[i]) == sorted([1.0, 1.0 + i])


def test_log_columns_of_plain_names():
    score = Score(reward=0.0, task="chat", route={}, capabilities={"wit": 2.0}, uncertainty=0.5, temperature=1.0)
    assert log_columns([score], {"chat": ["wit"], "a/b": []}) == {
        "has_uncertainty": [1.0],
        "uncertainty": [0.5],
        "truncated": [0.0],
        "task/chat": [1.0],
        "task/a%2Fb": [0.0],
        "chat/wit": [2.0],
    }
