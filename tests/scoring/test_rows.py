from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow.parquet as parquet
import pytest
from tiny import tiny_groups

from dmoerm.errors import DataError
from dmoerm.schema import Query
from dmoerm.scoring.output import open_output
from dmoerm.scoring.rows import MethodRows, ModelRows, Tally

QUERIES = [Query(prompt=group.prompt, responses=group.responses) for group in tiny_groups(3)]


class ByLength:
    """A method that rewards long responses."""

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        return [[float(len(text)) for text in query.responses] for query in queries]


def test_a_model_and_a_method_fill_the_same_columns(tiny_model: Callable[..., Any], tmp_path: Any) -> None:
    model = list(ModelRows(tiny_model()).rows(QUERIES))
    method = list(MethodRows(ByLength()).rows(QUERIES))
    assert [list(row) for row in model] == [list(row) for row in method]
    assert [row["id"] for row in method] == [query.id for query in QUERIES]
    assert [row["rewards"] for row in method] == ByLength().score_all(QUERIES)
    with open_output(str(tmp_path / "out.parquet")) as write:
        write([*model, *method])
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 2 * len(QUERIES)


def test_a_task_for_all_goes_before_the_rows_own(tiny_model: Callable[..., Any]) -> None:
    queries = [query.model_copy(update={"task": "strange"}) for query in QUERIES]
    bad: list[DataError] = []
    assert {row["task"] for row in ModelRows(tiny_model(), task="chitchat").rows(queries, bad.append)} == {"chitchat"}
    assert not bad
    assert not list(ModelRows(tiny_model()).rows(queries, bad.append))
    assert len(bad) == len(queries)
    with pytest.raises(DataError, match="no such task"):
        ModelRows(tiny_model(), task="strange").rows(queries)


def test_tallies_add_up() -> None:
    one, other = Tally(), Tally()
    one.take("chat", 2)
    other.take(None, 3)
    one.add(other)
    assert one.figures() == {"queries": 2, "responses": 5, "tasks": {"(general model)": 1, "chat": 1}}
