"""Groups and queries of a file; columns of other names."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dmoerm.data.readers import parse_columns, read_groups, read_queries
from dmoerm.errors import ConfigError, DataError
from dmoerm.schema import Query

Write = Callable[..., Path]
ROW = {"id": "1", "task": "chat", "prompt": "Hi", "responses": ["a", "b"], "scores": [1.0, 0.0]}


def test_a_bad_row_is_named_with_its_place(write_rows: Write) -> None:
    path = write_rows([ROW, ROW | {"scores": [1]}, ROW | {"prompt": 3}])
    with pytest.raises(DataError, match=rf"^{path}:2: scores: has 1 entries .*give one number"):
        read_groups(path)
    reading = read_groups(path, on_error="collect")
    assert [(error.line, error.field, error.value) for error in reading.bad] == [(2, "scores", [1]), (3, "prompt", 3)]
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


def test_queries_are_read_one_at_a_time_and_bad_ones_can_be_passed_over(write_rows: Write) -> None:
    path, bad = write_rows([ROW, ROW, {"prompt": ""}, [], ROW]), list[DataError]()
    assert len(list(islice(read_queries(path), 2))) == 2
    with pytest.raises(DataError, match=f"^{path}:3: "):
        list(read_queries(path))
    assert [query.line for query in read_queries(path, on_bad=bad.append)] == [1, 2, 5]
    assert [error.line for error in bad] == [3, 4]


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


# --- columns of other names ----------------------------------------------------------------------------------------

ROWS = [{"Question, short": f"q{i}", "best": "a", "worst": "b", "kind": "chat", "task": "x"} for i in range(2)]
COLUMNS = {"prompt": "Question, short", "chosen": "best", "rejected": "worst", "task": "kind"}


def test_the_option_holds_one_field_or_several() -> None:
    assert parse_columns(["prompt=Question, short,chosen=best", "rejected = worst", "task=kind"]) == COLUMNS
    assert parse_columns(["prompt=a=b"]) == {"prompt": "a=b"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("promt=question", "no format has the field 'promt'; did you mean prompt?"),
        ("prompt", "'prompt' is invalid; write FIELD=COLUMN"),
        ("prompt=a,prompt=b", "prompt is given twice, as 'a' and 'b'"),
        ("Question=prompt", r"did you mean question\? the order is FIELD=COLUMN: write prompt=Question"),
        ("Survey Question=prompt", "the order is FIELD=COLUMN: write prompt=Survey Question"),
    ],
)
def test_an_invalid_option_is_an_error(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_columns([option])


def test_groups_and_queries_are_read_from_the_mapped_columns(write_rows: Write) -> None:
    reading = read_groups(write_rows(ROWS), columns=COLUMNS)
    assert [(group.prompt, group.task) for group in reading.groups] == [("q0", "chat"), ("q1", "chat")]
    assert not reading.unknown_columns
    queries = read_queries(write_rows(ROWS), columns=COLUMNS)
    assert [(query.prompt, query.responses, query.line) for query in queries] == [
        ("q0", ("a", "b"), 1),
        ("q1", ("a", "b"), 2),
    ]
    exchanged = {"chosen": "rejected", "rejected": "chosen"}
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert read_groups(write_rows([row]), columns=exchanged).groups[0].responses == ("b", "a")


@pytest.mark.parametrize("on_error", ["raise", "collect"])
@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        (COLUMNS | {"task": "knd"}, "did you mean kind"),
        ({"prompt": "zz"}, "use one of its columns"),
        ({"task": "prompt"}, "the order is FIELD=COLUMN: write prompt=task"),
    ],
)
def test_a_column_that_the_file_lacks_is_one_error(columns: dict, hint: str, on_error: Any, write_rows: Write) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*the first row has no column.*{hint}"):
        read_groups(write_rows(ROWS), columns=columns, on_error=on_error)


def test_an_error_names_the_column_of_a_missing_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Q,best,worst\n,so a,so b\nq,a,\nq,a,b\n")
    columns = {"prompt": "Q", "chosen": "best", "rejected": "worst"}
    reading = read_groups(tmp_path / "a.csv", columns=columns, on_error="collect")
    assert len(reading.groups) == 1
    assert [(error.line, error.field) for error in reading.bad] == [
        (2, "prompt (column 'Q')"),
        (3, "rejected (column 'worst')"),
    ]
