"""Columns of other names."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dmoerm.data.readers import parse_columns, read_groups, read_queries
from dmoerm.errors import ConfigError, DataError

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
        ("Question=prompt", "did you mean question? the order is FIELD=COLUMN: write prompt=Question"),
        ("Survey Question=prompt", "the order is FIELD=COLUMN: write prompt=Survey Question"),
    ],
)
def test_an_invalid_option_is_an_error(option: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_columns([option])
    assert message in str(error.value)


def test_groups_and_queries_are_read_from_the_mapped_columns(write_rows: Callable[..., Path]) -> None:
    path = write_rows(ROWS)
    reading = read_groups(path, columns=COLUMNS)
    assert {(group.prompt, group.task) for group in reading.groups} == {("q0", "chat"), ("q1", "chat")}
    assert not reading.unknown_columns
    queries = list(read_queries(path, columns=COLUMNS))
    assert [(query.prompt, query.responses, query.line) for query in queries] == [
        ("q0", ("a", "b"), 1),
        ("q1", ("a", "b"), 2),
    ]


def test_two_columns_can_be_exchanged(write_rows: Callable[..., Path]) -> None:
    (group,) = read_groups(
        write_rows([{"prompt": "p", "chosen": "a", "rejected": "b"}]),
        columns={"chosen": "rejected", "rejected": "chosen"},
    ).groups
    assert group.responses == ("b", "a")


def test_a_column_that_the_file_lacks_is_one_error_with_a_hint(write_rows: Callable[..., Path]) -> None:
    for columns, hint in (
        (COLUMNS | {"task": "knd"}, "did you mean kind"),
        ({"prompt": "zz"}, "use one of its columns"),
        ({"task": "prompt"}, "the order is FIELD=COLUMN: write prompt=task"),
    ):
        for on_error in ("raise", "collect"):
            with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*the first row has no column.*{hint}"):
                read_groups(write_rows(ROWS), columns=columns, on_error=on_error)


def test_an_error_names_the_column_of_a_missing_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Q,best,worst\n,so a,so b\nq,a,\nq,a,b\n")
    reading = read_groups(path, columns={"prompt": "Q", "chosen": "best", "rejected": "worst"}, on_error="collect")
    assert len(reading.groups) == 1
    assert [(error.line, error.field) for error in reading.bad] == [
        (2, "prompt (column 'Q')"),
        (3, "rejected (column 'worst')"),
    ]
