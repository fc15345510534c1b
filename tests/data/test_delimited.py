"""Tables as text, and compressed files."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.data.readers import read_groups, read_queries
from dmoerm.data.rows import delimited_rows, open_rows
from dmoerm.errors import DataError

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
