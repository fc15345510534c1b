"""From a file or a dataset's name to its rows, as plain objects with their place, one at a time.

JSON Lines and Parquet are streamed in constant memory, a `.json` array is read whole. A row that cannot be read is
yielded as the `DataError` that says why, so that the rows after it can still be read; what is wrong with the source
itself (missing, empty, no Parquet file) is raised.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from ..errors import DataError
from ..io.storage import is_url, open_binary

PlacedRow = tuple[int, dict[str, Any] | DataError]
"""A row's line (in Parquet, in a JSON array and in a dataset: its number) from 1, and the row."""

_SUFFIXES = (".jsonl", ".json", ".parquet")
_DATASET_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_BATCH_ROWS = 256


def open_rows(source: str | Path, split: str = "train", *, streaming: bool = False) -> Iterator[PlacedRow]:
    """The rows of a .jsonl, .json (both also .gz) or .parquet file, of a dataset directory, or of `org/name[:config]`.

    `-` is the standard input, as JSON Lines. A file may be a URL that fsspec knows.
    `split` counts for datasets alone. Raises `DataError` where there is no such source or it cannot be read.
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
            raise DataError("is of no kind that can be read", file=source, value=path.suffix, hint=hint)
        return parquet_rows(str(source)) if suffix == ".parquet" else _json_rows(str(source), whole=suffix == ".json")
    if suffix in _SUFFIXES or not _DATASET_NAME.fullmatch(str(source)):
        raise DataError("there is no such file", file=path, hint="correct the path")
    return _dataset_rows(str(source), split, streaming)


def file_kind(file: str) -> str:
    """The suffix that says what a file holds; what `.gz` stands after."""
    return PurePosixPath(file.removesuffix(".gz")).suffix


def _json_rows(path: str, whole: bool) -> Iterator[PlacedRow]:
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(open_binary(path))
            file = stack.enter_context(gzip.open(file)) if path.endswith(".gz") else file
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            file.seek(0)
            # Many `.json` files hold one object a line; only an array must be read whole.
            yield from _array_rows(path, file.read()) if whole and start.startswith(b"[") else line_rows(file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", file=path, hint="check the file") from None


def line_rows(lines: Iterable[bytes], first: int = 1) -> Iterator[PlacedRow]:
    """The rows of JSON Lines, of which the first is line number `first`."""
    for line, content in enumerate(lines, first):
        if line == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")
        if content.strip():
            yield line, _attempt(content.rstrip())


def _attempt(content: bytes) -> dict[str, Any] | DataError:
    try:
        return _as_row(_decode(content))
    except DataError as error:
        return error


def _array_rows(path: str, content: bytes) -> Iterator[PlacedRow]:
    try:
        entries = _decode(content)
    except DataError as error:
        raise DataError(error.message, file=path, line=error.line, value=error.value, hint=error.hint) from None
    for number, entry in enumerate(entries, 1):
        try:
            yield number, _as_row(entry)
        except DataError as error:
            yield number, error


def _decode(content: bytes) -> Any:
    """JSON text → value. Raises `DataError` for bytes that are not UTF-8, broken JSON, NaN and lone surrogates."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        near = content[max(0, error.start - 10) : error.start + 10]
        raise DataError(f"is not UTF-8 at byte {error.start}", value=near, hint="save the file as UTF-8") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20]
        message = f"is not valid JSON: {error.msg} at column {error.colno}"
        raise DataError(message, line=error.lineno, value=near, hint="write one JSON object a line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting thousands deep
        raise DataError(f"cannot be read as JSON: {error}", hint="write one JSON object a line") from None
    if _SURROGATE_ESCAPE.search(text):
        _refuse_surrogates(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise DataError("is not valid JSON: not a number", value=name, hint="write null for a missing grade")


def _refuse_surrogates(value: Any) -> None:
    text = ""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except RecursionError:
        raise DataError("is nested too deeply", hint="write one JSON object a line") from None
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.start + 20]
        hint = "write the text as valid Unicode"
        raise DataError("holds a lone surrogate, which is not valid Unicode", value=near, hint=hint) from None


def _as_row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError("is not a JSON object", value=value, hint='write each row as {"prompt": …, …}')
    return value


def parquet_rows(path: str, start: int = 0, stop: int = sys.maxsize) -> Iterator[PlacedRow]:
    """The rows of a Parquet file, or those at `start` (from 0) to before `stop`; only their row groups are read."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    number = start
    try:
        with open_binary(path) as source, parquet.ParquetFile(source) as file:
            before, groups = _row_groups(file.metadata, start, stop)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups):
                wanted = batch.slice(max(start - before, 0), max(stop - max(start, before), 0))
                for row in wanted.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield number, row
                before += batch.num_rows
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        message = f"cannot be read as Parquet after row {number}: {error}"
        raise DataError(message, file=path, hint="check that the file is complete") from None


def _row_groups(about: Any, start: int, stop: int) -> tuple[int, list[int]]:
    """How many rows stand before the row groups that hold the rows `start` to `stop`; those groups."""
    before, groups, row = 0, [], 0
    for group in range(about.num_row_groups):
        end = row + about.row_group(group).num_rows
        if end <= start:
            before = end
        elif row < stop:
            groups.append(group)
        row = end
    return before, groups


def _dataset_rows(name: str, split: str, streaming: bool) -> Iterator[PlacedRow]:
    try:
        yield from enumerate(_load_dataset(name, split, streaming), 1)
    except Exception as error:  # the library, the hub client and the network below it raise dozens of kinds
        hint = "give the path of an existing file, or the name and split of a dataset that can be reached"
        reason = (str(error).splitlines() or [""])[0]
        message = f"split {split!r} cannot be loaded: {type(error).__name__}: {reason}"
        raise DataError(message, file=name, hint=hint) from error


def _load_dataset(name: str, split: str, streaming: bool) -> Iterable[Any]:
    import datasets

    path = Path(name)
    if (path / "dataset_dict.json").exists():
        return datasets.load_from_disk(name)[split]
    if (path / "dataset_info.json").exists():
        return datasets.load_from_disk(name)
    # A folder's path may hold a colon; in a dataset's name it comes before the configuration.
    repository, _, configuration = (name, "", "") if path.is_dir() else name.partition(":")
    return datasets.load_dataset(repository, configuration or None, split=split, streaming=streaming)
