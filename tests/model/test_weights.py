"""Weights of capabilities change the rewards alone, in the same way on every path in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny import tiny_groups

from dmoerm.errors import DataError
from dmoerm.evaluation.scoring_files import RowScorer
from dmoerm.schema import Query
from dmoerm.scores import MIN_REWARD, Score

PROMPTS = ["How are you?", "I failed my exam.", "Which one is larger, 9.9 or 9.11?"]
RESPONSES = [["Fine, and you?", "No."], ["Oh no, I am so sorry!", "", "The exam took place."], ["9.9", "x " * 40]]
WEIGHTS = {"empathy": 3.0, "logic": -2.0, "proactivity": 1.0}


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model()


def by_hand(score: Score, weights: dict[str, float]) -> float:
    """The formula of the docs, for rewards within ±10."""
    names = score.capabilities
    return score.reward + sum((weights.get(name, 1) - 1) * names[name] for name in names) / max(len(names), 1)


def rewards(scores: Any) -> list[list[float]]:
    return [[score.reward for score in row] for row in scores]


@pytest.mark.parametrize("deterministic", [False, True])
def test_alone_in_batches_and_in_a_stream(model: Any, deterministic: bool) -> None:
    plain = model.score(PROMPTS, RESPONSES, deterministic=deterministic)
    expected = [[by_hand(score, WEIGHTS) for score in row] for row in plain]
    together = model.score(PROMPTS, RESPONSES, deterministic=deterministic, weights=WEIGHTS)
    assert rewards(together) != rewards(plain)
    queries = [Query(prompt=prompt, responses=tuple(row)) for prompt, row in zip(PROMPTS, RESPONSES, strict=True)]
    streamed = [row for _, row in model.score_stream(queries, deterministic=deterministic, weights=WEIGHTS)]
    for i, row in enumerate(expected):
        alone = model.score(PROMPTS[i], RESPONSES[i], deterministic=deterministic, weights=WEIGHTS)
        small = model.score(PROMPTS[i], RESPONSES[i], batch_tokens=1, weights=WEIGHTS)
        for scores in (together[i], streamed[i], alone, small):
            assert rewards([scores])[0] == pytest.approx(row, abs=1e-4)
        if deterministic:
            assert together[i] == streamed[i] == alone


def test_an_empty_response_stays_below_all_others(model: Any) -> None:
    for weight in (-10, 10):
        for task, names in model.config.tasks.items():
            scores = model.score(PROMPTS[1], RESPONSES[1], task, weights=dict.fromkeys(names, weight))
            assert scores[1].reward == MIN_REWARD
            assert min(scores[0].reward, scores[2].reward) > MIN_REWARD


def test_a_weight_of_another_task_is_an_error_only_if_all_tasks_are_given(model: Any) -> None:
    with pytest.raises(DataError, match=r"task chitchat has no such capability.*'logic'.*empathy, proactivity"):
        model.score(PROMPTS, RESPONSES, "chitchat", weights={"logic": 2})
    with pytest.raises(DataError, match="the model has no such capability"):
        model.score(PROMPTS, RESPONSES, weights={"wit": 2})
    with pytest.raises(DataError, match="the model has no such task"):
        model.score(PROMPTS, RESPONSES, "poetry", weights={"logic": 2})
    tasks = ["chitchat", "objective_qa", "chitchat"]
    plain = model.score(PROMPTS, RESPONSES, tasks)
    weighted = model.score(PROMPTS, RESPONSES, tasks, weights={"logic": 2})
    changed = [row != other for row, other in zip(rewards(plain), rewards(weighted), strict=True)]
    assert changed == [False, True, False]


def test_a_stream_allows_the_weights_of_all_tasks(model: Any) -> None:
    queries = [Query(prompt="Hi!", responses=("Hello.",), task="chitchat")]
    ((_, scores),) = model.score_stream(queries, weights={"logic": 2})
    assert scores == model.score("Hi!", ["Hello."], "chitchat")
    with pytest.raises(DataError, match="the model has no such capability"):
        next(model.score_stream(queries, weights={"wit": 2}))


def test_files_check_the_weights_first_and_do_not_mind_the_rows_tasks(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmoerm.model.packing._WINDOW_QUERIES", 1)  # a window without the weight's task
    queries = [Query(prompt=g.prompt, responses=g.responses, task=g.task) for g in tiny_groups(3)]
    plain = list(RowScorer(model).rows(queries))
    weighted = list(RowScorer(model, weights={"logic": 3.0}).rows(queries))
    for row, other in zip(plain, weighted, strict=True):
        logic = row["capabilities"].get("logic", [0.0] * len(row["rewards"]))
        expected = [reward + 2 * value / 2 for reward, value in zip(row["rewards"], logic, strict=True)]
        assert other["rewards"] == pytest.approx(expected, abs=1e-9)
        assert other | {"rewards": 0} == row | {"rewards": 0}
    assert {row["task"] for row in plain} == {"chitchat", "objective_qa"}
    for scorer in (RowScorer(model, weights={"wit": 3}), RowScorer(model, task="chitchat", weights={"logic": 3})):
        with pytest.raises(DataError, match="has no such capability"):
            scorer.rows(queries, on_bad=lambda error: pytest.fail("a row is skipped for the weights"))
