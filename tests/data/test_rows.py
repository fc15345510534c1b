import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dmoerm.data.rows import open_rows
from dmoerm.errors import DataError

ROW = {"prompt": "Hi", "responses": ["a", "b"], "scores": [1.0, 0.0]}
LINE = json.dumps(ROW).encode()


def rows_of(path: Path, content: bytes) -> list[tuple[int, object]]:
    path.write_bytes(content)
    return [(line, row.message if isinstance(row, DataError) else row) for line, row in open_rows(path)]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (LINE, [(1, ROW)]),
        (b"\xef\xbb\xbf" + LINE + b"\n", [(1, ROW)]),
        (LINE + b"\r\n\r\n", [(1, ROW)]),
        (b"\n  \n" + LINE + b"\n\n" + LINE, [(3, ROW), (5, ROW)]),
        ('{"a": "x\u2028y\x85z"}'.encode(), [(1, {"a": "x\u2028y\x85z"})]),  # line separators in a text end no line
        (b'{"a": "\\ud83d\\ude00"}', [(1, {"a": "😀"})]),  # a pair of surrogates is a character
    ],
)
def test_lines(content: bytes, rows: list, tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.jsonl", content) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1', "is not valid JSON: EOF while parsing an object at column 7"),
        (b'{"a": NaN}', "is not valid JSON: expected value"),
        (b'{"a": -Infinity}', "is not valid JSON: invalid number"),
        (b"[1, 2]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b'{"a": "caf\xe9"}', "is not UTF-8 at byte 10"),
        (b'{"a": "\\ud83d"}', "is not valid JSON: unexpected end of hex escape"),
        (b'{"\\uDC00": 1}', "is not valid JSON: lone leading surrogate"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON: number out of range"),
        (b"[" * 100_000, "is not valid JSON: recursion limit"),
        (LINE.decode().encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_bad_line_is_yielded_and_the_next_is_read(content: bytes, message: str, tmp_path: Path) -> None:
    result = rows_of(tmp_path / "a.jsonl", content + b"\n" + LINE)
    assert str(result[0][1]).startswith(message)
    assert result[-1] in [
        (2, ROW),
        (2, "is not UTF-8 at byte 0"),
        (2, "is not valid JSON: expected value at column 1"),
    ]


def test_json_files_hold_an_array_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert rows_of(path, b" [" + LINE + b",\n" + LINE + b", 3]") == [(1, ROW), (2, ROW), (3, "is not a JSON object")]
    assert rows_of(path, LINE + b"\n" + LINE) == [(1, ROW), (2, ROW)]
    with pytest.raises(DataError, match=r"a\.json:1: is not valid JSON"):
        rows_of(path, b"[" + LINE)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [ROW | {"capabilities": {"logic": [1.0, None]}}, ROW | {"capabilities": {"empathy": [None, 1.0]}}] * 300
    parquet.write_table(pa.Table.from_pylist(rows), path)
    result = list(open_rows(path))
    assert [line for line, _ in result] == list(range(1, 601))
    assert result[0][1] == ROW | {"capabilities": {"logic": [1.0, None], "empathy": None}}
    with pytest.raises(DataError, match="cannot be read as Parquet after row 0"):
        rows_of(path, b"PAR1 is more than this")


def test_a_dataset_directory(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list([ROW, ROW])
    saved.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"test": saved}).save_to_disk(tmp_path / "split")
    assert list(open_rows(tmp_path / "plain")) == [(1, ROW), (2, ROW)]
    assert list(open_rows(tmp_path / "split", "test")) == [(1, ROW), (2, ROW)]
    with pytest.raises(DataError, match="split 'train' cannot be loaded: KeyError"):
        list(open_rows(tmp_path / "split"))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file does not exist"):
        open_rows(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="the file does not exist"):
        open_rows("data/none.jsonl")
    (tmp_path / "a.xlsx").write_text("a,b")
    with pytest.raises(DataError, match=r"has an unsupported format \(got '.xlsx'\)"):
        open_rows(tmp_path / "a.xlsx")


def test_a_dataset_name_goes_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def load_dataset(*arguments: object, **options: object) -> list[dict]:
        requested.append((arguments, options))
        return [ROW]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(open_rows("org/name:preference", "validation")) == [(1, ROW)]
    assert list(open_rows("org/name", streaming=True)) == [(1, ROW)]
    assert requested == [
        (("org/name", "preference"), {"split": "validation", "streaming": False}),
        (("org/name", None), {"split": "train", "streaming": True}),
    ]
