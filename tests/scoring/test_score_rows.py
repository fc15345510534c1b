from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from tiny import tiny_groups

from dmoerm.errors import DataError
from dmoerm.model.ensemble import combine_scores
from dmoerm.schema import Query
from dmoerm.scoring.output import open_output
from dmoerm.scoring.score_rows import ModelRows, RowScorer, ScoreCounts, written_rows

QUERIES = [Query(prompt=group.prompt, responses=group.responses) for group in tiny_groups(3)]


class Given:
    """A scorer whose rewards are given."""

    def __init__(self, *rewards: list[float]) -> None:
        self.rewards = rewards

    def rows(self, queries: Iterable[Query], on_bad: Any = None) -> Iterator[tuple[Query, dict[str, Any]]]:
        yield from ((query, {"rewards": row}) for query, row in zip(queries, self.rewards, strict=True))


def rows(scorer: RowScorer, queries: Iterable[Query] = QUERIES, on_bad: Any = None) -> list[dict[str, Any]]:
    return list(written_rows(scorer, queries, on_bad))


@pytest.fixture
def two(tiny_model: Callable[..., Any]) -> list[Any]:
    """Two models that rate differently, one of which is never sure of the task."""
    return [tiny_model(), tiny_model(base="frozen", router={"threshold": 1.0})]


def test_a_model_and_an_ensemble_fill_the_same_columns(two: list[Any], tmp_path: Path) -> None:
    model, ensemble = rows(ModelRows(two[:1])), rows(ModelRows(two))
    assert [list(row) for row in model] == [list(row) for row in ensemble]
    for result in (model, ensemble):
        assert [row["id"] for row in result] == [query.id for query in QUERIES]
    with open_output(str(tmp_path / "out.parquet")) as write:
        write([*model, *ensemble])
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 2 * len(QUERIES)


@pytest.mark.parametrize("mode", ["mean", "wco", "uwo"])
def test_an_ensemble_joins_what_its_members_say(two: list[Any], mode: str) -> None:
    apart = [list(model.score_queries(QUERIES)) for model in two]
    for row, *members in zip(rows(ModelRows(two, ensemble=mode)), *apart, strict=True):
        expected = combine_scores(members, mode)
        assert row["rewards"] == [score.reward for score in expected]
        assert row["uncertainty"] == [score.uncertainty for score in expected]
        assert min(row["uncertainty"]) > 0
        assert (row["task"], row["route"], row["temperature"]) == (
            expected[0].task,
            expected[0].route,
            expected[0].temperature,
        )


def test_the_best_is_the_first_of_the_highest(tmp_path: Path) -> None:
    queries = [Query(id=str(i), prompt="p", responses=("a", "b", "c")) for i in range(3)]
    scorer = Given([0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [-3.0, -2.0, -1.0])
    result = list(written_rows(scorer, queries, best=True))
    assert [(row["best"], row["chosen"]) for row in result] == [(1, "b"), (0, "a"), (2, "c")]
    assert all(row.keys() == {"rewards"} for row in rows(scorer, queries))
    for name in ("out.parquet", "out.jsonl"):
        with open_output(str(tmp_path / name), best=True) as write:
            write(result)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for read in (parquet.read_table(tmp_path / "out.parquet").to_pylist(), lines):
        assert [(row["best"], row["chosen"]) for row in read] == [(1, "b"), (0, "a"), (2, "c")]
    with pytest.raises(DataError, match=r"query 0: cannot choose the best .* not finite \(got nan\)"):
        list(written_rows(Given([1.0, float("nan"), 0.0]), queries[:1], best=True))


def test_a_task_for_all_goes_before_the_rows_own(tiny_model: Callable[..., Any], caplog: Any) -> None:
    models = [tiny_model()]
    queries = [query.model_copy(update={"task": "strange"}) for query in QUERIES]
    bad: list[DataError] = []
    assert {row["task"] for row in rows(ModelRows(models, task="chitchat"), queries, bad.append)} == {"chitchat"}
    assert not bad
    routed = [query.model_copy(update={"task": None}) for query in queries]
    assert rows(ModelRows(models), queries, bad.append) == rows(ModelRows(models), routed, bad.append)
    assert not bad
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "the model has no task 'strange'" in warning
    with pytest.raises(DataError, match="no such task"):
        ModelRows(models, task="strange").rows(queries)


def test_what_one_member_cannot_score_is_left_out(tiny_model: Callable[..., Any]) -> None:
    members = [tiny_model(), tiny_model(encoding={"max_length": 40})]
    queries = [Query(id=name, prompt="How?", responses=("So. " * n, "No.")) for name, n in (("short", 2), ("long", 60))]
    bad: list[DataError] = []
    assert [row["id"] for row in rows(ModelRows(members), queries, bad.append)] == ["short"]
    assert "query long" in str(bad[0])
    assert len(bad) == 1


def test_tallies_add_up() -> None:
    first, other = ScoreCounts(), ScoreCounts()
    first.add("chat", 2)
    other.add(None, 3)
    first.merge(other)
    assert first.summary() == {"queries": 2, "responses": 5, "tasks": {"(general model)": 1, "chat": 1}}
