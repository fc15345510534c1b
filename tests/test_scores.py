"""The range of rewards, win probabilities, weights, and the queries that `score` makes of its arguments."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.errors import DataError
from dmoerm.names import BASE_SCORES
from dmoerm.scores import (
    MAX_WEIGHT,
    MIN_REWARD,
    Score,
    adjusted,
    as_queries,
    bound_reward,
    check_weights,
    group_by_prompt,
    log_columns,
    unbound_reward,
)

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


@given(SAMPLES)
def test_each_prompt_has_one_query_with_all_its_responses(samples):
    groups = group_by_prompt(samples)
    assert len({(query.task, query.prompt) for query, _ in groups}) == len(groups)
    placed = {at: (q.task, q.prompt, r) for q, indices in groups for at, r in zip(indices, q.responses, strict=True)}
    assert placed == dict(enumerate(samples))


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
        {"contribution": ["task", "task/a"], "task": ["contribution", "a"], "contribution/task": ["a"]},
    ],
)
def test_no_two_log_columns_are_the_same(tasks):
    samples = [(task, name) for task, names in tasks.items() for name in names]
    scores = [
        Score(0.0, task, {}, {name: 2.0 + i}, None, 1.0, contributions={name: -1.0 - i, "general": 99.0})
        for i, (task, name) in enumerate(samples)
    ]
    columns = log_columns(scores, tasks)
    assert len(columns) == 3 + len(tasks) + 2 * len(samples) + len(BASE_SCORES)
    for i in range(len(samples)):
        assert sorted(values[i] for values in columns.values() if values[i]) == [-1.0 - i, 1.0, 2.0 + i, 99.0]


def test_log_columns_of_plain_names():
    score = Score(0.0, "chat", {}, {"wit": 2.0}, 0.5, 1.0, contributions={"wit": 0.3, "per_task": -0.3})
    expected = {"has_uncertainty": 1.0, "uncertainty": 0.5, "truncated": 0.0}
    expected |= {"task/chat": 1.0, "task/a%2Fb": 0.0, "chat/wit": 2.0, "contribution/chat/wit": 0.3}
    expected |= {"contribution/per_task": -0.3, "contribution/general": 0.0}
    expected |= {"contribution/all_labels": 0.0, "contribution/other_tasks": 0.0}
    assert log_columns([score], {"chat": ["wit"], "a/b": []}) == {name: [value] for name, value in expected.items()}


# --- weights -------------------------------------------------------------------------------------------------------

NAMES = ["wit", "tone", "logic"]
CAPABILITIES = st.fixed_dictionaries(dict.fromkeys(NAMES, st.floats(-8, 8)))
WEIGHTS = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, st.floats(-MAX_WEIGHT, MAX_WEIGHT)))
TASKS = {"chat": ["wit", "tone"], "qa": ["logic"], "bare": []}


def rated(value: float, capabilities: dict[str, float]) -> Score:
    parts = {**dict.fromkeys(capabilities, 0.0), "per_task": value}
    return Score(bound_reward(value), "chat", {"chat": 1.0}, capabilities, 0.5, 1.5, contributions=parts)


@given(VALUES, CAPABILITIES, WEIGHTS)
def test_a_weight_adds_its_share_of_the_capability_and_changes_nothing_else(value, capabilities, weights):
    plain = rated(value, capabilities)
    score = plain.reweighted(weights)
    shift = sum((weight - 1) * capabilities[name] for name, weight in weights.items()) / 3
    assert unbound_reward(score.reward) == pytest.approx(value + shift, rel=1e-6, abs=1e-9)
    assert MIN_REWARD < np.float32(score.reward) < -MIN_REWARD
    assert math.fsum(score.contributions.values()) == pytest.approx(value + shift, rel=1e-6, abs=1e-9)
    assert replace(score, reward=0.0, contributions={}) == replace(plain, reward=0.0, contributions={})


def test_the_advantage_is_by_size_and_sums_to_the_difference():
    parts = {"wit": 0.5, "tone": -0.75, "per_task": 0.0}, {"wit": 0.25, "per_task": -1.0, "other_tasks": 0.125}
    first, second = (Score(sum(p.values()), "chat", {}, {}, None, 1.0, contributions=p) for p in parts)
    found = first.advantage(second)
    assert list(found.items()) == [("per_task", 1.0), ("tone", -0.75), ("wit", 0.25), ("other_tasks", -0.125)]
    assert sum(found.values()) == first.reward - second.reward
    empty = Score(MIN_REWARD, "chat", {}, {}, None, 1.0)
    assert first.advantage(empty) == empty.advantage(first) == {}


def test_weights_have_no_effect_without_capability_scores():
    empty, general = Score(MIN_REWARD, "chat", {}, {}, None, 1.0), Score(0.4, None, {}, {}, None, 1.0)
    assert list(adjusted([[empty], [general]], {"wit": 5.0})) == [[empty], [general]]
    lowest = rated(-1e6, {"wit": -8.0}).reweighted({"wit": MAX_WEIGHT})
    assert lowest.reward > empty.reward
    assert not lowest.empty


def test_a_capability_that_is_not_finite_counts_only_with_a_weight():
    score = rated(0.5, {"wit": math.nan, "tone": 1.0})
    assert score.reweighted({"tone": 3}).reward == 1.5
    assert math.isnan(score.reweighted({"wit": 2}).reward)


@pytest.mark.parametrize("weights", [None, {}, {"wit": 2, "logic": -10}, {"tone": np.float32(0.5)}])
def test_valid_weights(weights):
    check_weights(weights, TASKS)
    check_weights(weights, TASKS, ["chat", "qa"])
    check_weights(weights, TASKS, ["chat", None])  # the router may choose any task
    rewards = [score.reward for (score,) in adjusted([[rated(0.5, {"wit": 1.0, "tone": 1.0})]], weights)]
    assert all(type(reward) is float for reward in rewards)


@pytest.mark.parametrize(
    ("weights", "chosen", "field", "message"),
    [
        ({"empathy": 2}, [], "weights", "the model has no such capability.*'empathy'.*wit, tone, logic"),
        ({"logic": 2}, ["chat"], "weights", "task chat has no such capability.*'logic'.*use one of wit, tone$"),
        ({"logic": 2}, ["chat", "bare"], "weights", "task chat or bare has no such"),
        ({"empathy": 2}, ["chat", None], "weights", "the model has no such"),
        ({"wit": 2}, ["bare"], "weights", "leave the weights out"),
        ({"wit": math.nan}, [], "weights.wit", "not a number from -10 to 10.*nan"),
        ({"wit": 10.1}, [], "weights.wit", "got 10.1"),
        ({"wit": "2"}, [], "weights.wit", "got '2'"),
        ({"wit": True}, [], "weights.wit", "got True"),
        (["wit"], [], "weights", "is list, not a mapping"),
    ],
)
def test_invalid_weights_are_named(weights, chosen, field, message):
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        check_weights(weights, TASKS, chosen)
    assert caught.value.field == field
