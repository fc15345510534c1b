"""Read the rows of a file or a dataset one at a time, with their positions.

JSON Lines, CSV, TSV and Parquet are streamed in constant memory; a `.json` array is read whole. A row that cannot be
read is yielded as a `DataError`, so that the rows after it can still be read. An error of the source itself (a missing
file, an invalid Parquet file) is raised.

In comma- and tab-separated text, a cell is text, an empty cell is null, and a cell that holds a conversation as JSON
becomes that conversation. A record of empty cells, which spreadsheets write after the last row, is a `SkippedRow`.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pydantic_core import from_json

from ..errors import DataError
from ..io.storage import is_url, open_binary
from .values import SkippedRow, parsed

PlacedRow = tuple[int, dict[str, Any] | DataError]
"""The line of a row, from 1 (in Parquet files, JSON arrays and datasets: the number of the row), and the row."""

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_COMPRESSIONS = (".gz", ".zst")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DATASET_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_FAULT_AT = re.compile(r"(.+) at line (\d+) column (\d+)")  # pydantic_core's message
_BATCH_ROWS = 256


def open_rows(source: str | Path, split: str = "train", *, streaming: bool = False) -> Iterator[PlacedRow]:
    """Yield the rows of a file, a dataset directory or `org/name[:config]`.

    A file ends in .jsonl, .ndjson, .json, .csv, .tsv (all also with .gz or .zst) or .parquet. `-` is the standard
    input, as JSON Lines. A file may be a URL that fsspec supports. `split` is for datasets only.

    Raises:
        DataError: the source does not exist or cannot be read.
    """
    if str(source) == "-":
        return line_rows(sys.stdin.buffer)
    path = Path(source)
    suffix = file_kind(str(source))
    if path.is_dir():
        return _dataset_rows(str(source), split, streaming)
    if path.is_file() or is_url(str(source)):
        if suffix not in _SUFFIXES:
            hint = f"give a file that ends in {', '.join(_SUFFIXES)}"
            raise DataError("has an unsupported format", file=source, value=path.suffix, hint=hint)
        return parquet_rows(str(source)) if suffix == ".parquet" else _text_rows(str(source), suffix)
    if suffix in _SUFFIXES or not _DATASET_NAME.fullmatch(str(source)):
        raise DataError("the file does not exist", file=path, hint="correct the path")
    return _dataset_rows(str(source), split, streaming)


def file_kind(file: str) -> str:
    """Return the suffix that names the format of a file, without `.gz` or `.zst`."""
    return PurePosixPath(PurePosixPath(file).stem if is_compressed(file) else file).suffix


def is_compressed(file: str) -> bool:
    """Return whether a file's name says that it is compressed."""
    return file.endswith(_COMPRESSIONS)


def _text_rows(path: str, kind: str) -> Iterator[PlacedRow]:
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(open_binary(path))
            if path.endswith(".gz"):
                file = stack.enter_context(gzip.open(file))
            elif path.endswith(".zst"):
                import pyarrow

                raw: Any = stack.enter_context(
                    pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
                )
                file = stack.enter_context(io.BufferedReader(raw))
            if kind in (".csv", ".tsv"):
                yield from delimited_rows(file, "\t" if kind == ".tsv" else None)
            else:
                yield from _json_rows(file) if kind == ".json" else line_rows(file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", file=path, hint="check the file") from None
    except DataError as error:  # of the text itself, such as its encoding
        raise error.at(path, error.line) from None


def _json_rows(file: IO[bytes]) -> Iterator[PlacedRow]:
    """Yield the rows of a `.json` file. Many hold one object per line; only an array must be read whole."""
    start: list[bytes] = []
    for line in file:
        start.append(line)
        if line.removeprefix(_BYTE_ORDER_MARK).strip():
            break
    if start and start[-1].removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
        yield from ((number, _as_row(entry)) for number, entry in enumerate(_decode(b"".join(start) + file.read()), 1))
    else:
        yield from line_rows(itertools.chain(start, file))


def line_rows(lines: Iterable[bytes], first: int = 1) -> Iterator[PlacedRow]:
    """Yield the rows of JSON Lines; `first` is the number of the first line."""
    for line, content in enumerate(lines, first):
        if content.removeprefix(_BYTE_ORDER_MARK).strip():
            try:
                row = _as_row(_decode(content.rstrip()))
            except DataError as error:
                row = error
            yield line, row


def _as_row(value: Any) -> dict[str, Any] | DataError:
    if isinstance(value, dict):
        return value
    return DataError("is not a JSON object", value=value, hint='write each row as {"prompt": …, …}')


def _decode(content: bytes) -> Any:
    """Decode JSON text. Raise `DataError` for bytes that are not UTF-8, invalid JSON, NaN and lone surrogates."""
    text = _utf8(content).removeprefix("\ufeff")
    try:
        return from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        fault = _FAULT_AT.fullmatch(str(error))
    message, line, column = fault.groups() if fault else ("", "1", "1")
    faulty = text.encode().split(b"\n")[int(line) - 1]
    near = faulty[max(0, int(column) - 20) : int(column) + 20].decode(errors="ignore")
    hint = "write one JSON object per line, with null for what is missing"
    raise DataError(f"is not valid JSON: {message} at column {column}", line=int(line), value=near, hint=hint)


def _utf8(content: bytes, line: int | None = None) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        near = content[max(0, error.start - 10) : error.start + 10]
        message = f"is not UTF-8 at byte {error.start}"
        raise DataError(message, line=line, value=near, hint="save the file as UTF-8") from None


# --- comma- and tab-separated text ---------------------------------------------------------------------------------


def delimited_rows(lines: Iterable[bytes], delimiter: str | None = None) -> Iterator[PlacedRow]:
    """Yield each record with its first line, from 1, under the names of the header.

    Args:
        delimiter: the character between cells; by default the comma, semicolon or tab that the header has most often.

    Raises:
        DataError: the text is not UTF-8, or the header is invalid or names a column twice.
    """
    csv.field_size_limit(2**31 - 1)
    text = (_utf8(content, number) for number, content in enumerate(lines, 1))
    first = next(text, "").removeprefix("\ufeff")
    delimiter = delimiter or max(",;\t", key=first.count)
    reader = csv.reader(itertools.chain([first], text), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"the header is not a valid record: {error}", line=1, hint="name the columns there") from None
    if twice := [name for name, count in Counter(header).items() if count > 1 and name]:
        raise DataError("the header names a column twice", line=1, value=twice[0], hint="rename one of them")
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = 'put a cell with line breaks in double quotes, and write a double quote in it as ""'
            yield line, DataError(f"is not a valid record: {error}", hint=hint)
            continue
        if len(cells) == len(header) and any(cells):
            yield line, {name: _cell(cell) for name, cell in zip(header, cells, strict=True) if name}
        elif any(cells):
            message = f"has {len(cells)} cells where the header has {len(header)}"
            yield line, DataError(message, value=cells, hint="put a cell that holds the delimiter in double quotes")
        elif cells:
            yield line, SkippedRow("all cells are empty")


def _cell(cell: str) -> Any:
    """Return null for an empty cell, and the conversation that a cell holds as JSON."""
    turns = parsed(cell) if cell.startswith("[") and '{"' in cell else None
    talk = isinstance(turns, list) and all(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in turns)
    return turns if turns and talk else cell or None


# --- Parquet and datasets ------------------------------------------------------------------------------------------


def parquet_rows(path: str, start: int = 0, stop: int = sys.maxsize) -> Iterator[PlacedRow]:
    """Yield the rows `start` (from 0) to `stop` − 1 of a Parquet file; only their row groups are read."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    row = 0
    try:
        with open_binary(path) as source, parquet.ParquetFile(source) as file:
            for group in range(file.metadata.num_row_groups):
                end = row + file.metadata.row_group(group).num_rows
                if end <= start or row >= stop:
                    row = end
                    continue
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
                    skipped = max(start - row, 0)
                    rows = batch.slice(skipped, max(stop - row - skipped, 0)).to_pylist(maps_as_pydicts="strict")
                    yield from enumerate(rows, row + skipped + 1)
                    row += batch.num_rows
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        message = f"cannot be read as Parquet after row {row}: {error}"
        raise DataError(message, file=path, hint="check that the file is complete") from None


def _dataset_rows(name: str, split: str, streaming: bool) -> Iterator[PlacedRow]:
    import datasets

    path = Path(name)
    try:
        if (path / "dataset_dict.json").exists():
            rows: Any = datasets.load_from_disk(name)[split]
        elif (path / "dataset_info.json").exists():
            rows = datasets.load_from_disk(name)
        else:
            # A folder's path may hold a colon; in a dataset's name it comes before the configuration.
            repository, _, configuration = (name, "", "") if path.is_dir() else name.partition(":")
            rows = datasets.load_dataset(repository, configuration or None, split=split, streaming=streaming)
        yield from enumerate(rows, 1)
    except Exception as error:  # datasets, the hub client and the network raise many kinds of exceptions
        hint = "give the path of an existing file, or the name and split of an existing dataset"
        reason = (str(error).splitlines() or [""])[0]
        message = f"split {split!r} cannot be loaded: {type(error).__name__}: {reason}"
        raise DataError(message, file=name, hint=hint) from error
