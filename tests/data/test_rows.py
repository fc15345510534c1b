import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.data.readers import read_groups, read_queries
from dmoerm.data.rows import delimited_rows, open_rows
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


# --- comma- and tab-separated text, compressed files ---------------------------------------------------------------

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1, max_size=8)
TABLES = st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=4)


@given(rows=TABLES, delimiter=st.sampled_from(",;\t"))
def test_what_is_written_as_csv_is_read(rows: list[list[str]], delimiter: str) -> None:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([["a", "b", "c"], *rows])
    lines = file.getvalue().encode().splitlines(keepends=True)
    read = list(delimited_rows(io.BytesIO(b"".join(lines))))
    assert [list(row.values()) for _, row in read if isinstance(row, dict)] == rows


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"\xef\xbb\xbfa,b\r\n1,\r\n\r\n2,3\r\n", [(2, {"a": "1", "b": None}), (4, {"a": "2", "b": "3"})]),
        (b'a,b\n"x\ny","say ""hi"""\n1,2\n', [(2, {"a": "x\ny", "b": 'say "hi"'}), (4, {"a": "1", "b": "2"})]),
        (b"a;b\n1,5;2\n", [(2, {"a": "1,5", "b": "2"})]),
        (b",a\n0,1\n", [(2, {"a": "1"})]),
    ],
)
def test_lines_and_cells(content: bytes, rows: list, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert list(open_rows(tmp_path / "a.csv")) == rows


def test_a_row_of_another_length_is_a_bad_row_and_the_next_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('prompt\tchosen\trejected\nHi\ta\tb\nHo\ta\nHu\t"a" b\tc\nHe\ta\tb\n')
    reading = read_groups(path, on_error="collect")
    assert [error.line for error in reading.bad] == [3, 4]
    assert "has 2 cells where the header has 3" in str(reading.bad[0])
    assert [group.prompt for group in reading.groups] == ["Hi", "He"]


def test_faults_of_the_whole_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content, message in (
        ("prompt,chosen\nna\u00efve,b\n".encode("latin-1"), "a.csv:2: is not UTF-8"),
        (b"a,b,a\n1,2,3\n", "a.csv:1: the header names a column twice"),
        (b"prompt,chosen,rejected\n", "contains no rows"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_groups(path)


def test_a_record_of_empty_cells_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\n,,\nHi,a,b\n,,\n,\nHo,a,b\n")
    reading = read_groups(path)
    assert [group.prompt for group in reading.groups] == ["Hi", "Ho"]
    assert reading.skipped == {"row: all cells are empty": 3}
    assert [query.line for query in read_queries(path)] == [3, 6]


def test_lists_and_conversations_in_cells(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "responses", "scores", "capabilities"])
        writer.writerow([json.dumps(turns), '["a", "[b]"]', "[1, 0]", '{"logic": [1, null]}'])
    (group,) = read_groups(tmp_path / "a.csv").groups
    assert [message.content for message in group.prompt if not isinstance(message, str)] == ["Hi"]
    assert (group.responses, group.scores, group.capabilities) == (("a", "[b]"), (1, 0), {"logic": (1, None)})


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv"])
def test_compressed_files_hold_the_same_rows(name: str, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"p{i}", "chosen": "a" * i, "rejected": "b"}) for i in range(1, 300)]
    content = "\n".join(lines)
    if name == "a.json":
        content = f"\n[{', '.join(lines)}]"
    elif name == "a.csv":
        content = "prompt,chosen,rejected\n" + "".join(f"p{i},{'a' * i},b\n" for i in range(1, 300))
    (tmp_path / name).write_text(content)
    plain = list(open_rows(tmp_path / name))
    assert len(plain) == 299
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    with pa.CompressedOutputStream(str(tmp_path / f"{name}.zst"), "zstd") as file:
        file.write(content.encode())
    for compressed in (tmp_path / f"{name}.gz", tmp_path / f"{name}.zst"):
        assert list(open_rows(compressed)) == plain
        compressed.write_bytes(compressed.read_bytes()[:-9])
        with pytest.raises(DataError, match="cannot be read"):
            list(open_rows(compressed))
