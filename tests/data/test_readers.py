from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dmoerm.data.readers import read_groups, read_queries
from dmoerm.errors import DataError
from dmoerm.schema import Query

Write = Callable[..., Path]
ROW = {"id": "1", "task": "chat", "prompt": "Hi", "responses": ["a", "b"], "scores": [1.0, 0.0]}


def test_a_bad_row_is_named_with_its_place(write_rows: Write) -> None:
    path = write_rows([ROW, ROW | {"scores": [1]}, ROW | {"prompt": 3}])
    with pytest.raises(DataError, match=rf"^{path}:2: scores: has 1 entries .*give one number") as caught:
        read_groups(path)
    assert caught.value.line == 2
    reading = read_groups(path, on_error="collect")
    assert [error.line for error in reading.bad] == [2, 3]
    assert [error.field for error in reading.bad] == ["scores", "prompt"]
    assert [error.value for error in reading.bad] == [[1], 3]
    assert (len(reading.groups), reading.rows) == (1, 3)


def test_a_source_without_rows_is_an_error(write_rows: Write) -> None:
    for on_error in ("raise", "collect"):
        with pytest.raises(DataError, match=r"rows\.jsonl: contains no rows"):
            read_groups(write_rows([]), on_error=on_error)


def test_labels_must_fit_the_responses_before_any_is_left_out(write_rows: Write) -> None:
    row = {"src": ["你好"], "tgt": [], "response": ["好", "", "坏"], "rank": [1, 2]}
    with pytest.raises(DataError, match="ranks: has 2 entries for 3 responses"):
        read_groups(write_rows([row]))


def test_parquet_equals_json_lines(write_rows: Write, tmp_path: Path) -> None:
    rows = [ROW | {"capabilities": {"logic": [1.0, None]}}, ROW | {"capabilities": {"empathy": [None, 1.0]}}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_groups(tmp_path / "rows.parquet").groups == read_groups(write_rows(rows)).groups
    assert list(read_queries(tmp_path / "rows.parquet")) == list(read_queries(write_rows(rows)))


@pytest.mark.parametrize(
    ("row", "responses"),
    [
        (ROW, ("a", "b")),
        ({"prompt": "Hi", "responses": ["a"]}, ("a",)),
        ({"prompt": "Hi", "response": "a"}, ("a",)),
        ({"prompt": "Hi", "completion": "a"}, ("a",)),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, ("a", "a")),
        ({"prompt": "Hi", "response": "a", "helpfulness": 3}, ("a",)),
    ],
)
def test_queries_need_no_preference(row: dict[str, Any], responses: tuple[str, ...], write_rows: Write) -> None:
    (query,) = read_queries(write_rows([row]))
    assert type(query) is Query
    assert (query.prompt, query.responses) == ("Hi", responses)


def test_queries_are_read_one_at_a_time(write_rows: Write) -> None:
    path = write_rows([ROW, ROW, {"prompt": ""}])
    assert len(list(islice(read_queries(path), 2))) == 2
    with pytest.raises(DataError, match=f"^{path}:3: "):
        list(read_queries(path))


def test_bad_queries_can_be_passed_over(write_rows: Write) -> None:
    bad: list[DataError] = []
    path = write_rows([{"prompt": ""}, ROW, [], ROW])
    assert len(list(read_queries(path, on_bad=bad.append))) == 2
    assert [error.line for error in bad] == [1, 3]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "responses": ["a", "a", "b"], "scores": [3, 1, 2]},
        {"prompt": "Hi", "chosen": ["a", "a"], "rejected": ["a", "b"], "subset": "x"},
        {"src": ["Hi"], "response": ["a", "a", "b"], "rank": [1, 2, 3], "label": "chitchat"},
    ],
)
def test_identical_responses_with_different_grades_are_counted_and_make_no_pair(
    row: dict[str, Any], read_rows: Callable[..., Any]
) -> None:
    reading = read_rows(row)
    (group,) = reading.groups
    assert reading.skipped["pair: identical responses with different grades"] == group.identical_pairs() > 0
    assert all(group.responses[pair.better] != group.responses[pair.worse] for pair in group.pairs())
