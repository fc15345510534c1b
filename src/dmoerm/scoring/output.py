"""Write the rows of `score` as JSON Lines or Parquet; a file is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from ..errors import CheckpointError, ConfigError
from ..io.storage import complete_at

Write = Callable[[list[dict[str, Any]]], None]
_GROUP_ROWS = 256  # of a Parquet row group
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def open_output(target: str, best: bool = False) -> Iterator[Write]:
    """Open `target` for rows: a path, a URL, or `-` for JSON Lines on standard output; yields a function that writes.

    The file gets its name when the block ends without an error; until then, an existing file stays.

    Args:
        best: the rows have the columns `best` and `chosen`.

    Raises:
        ConfigError: the name ends in neither .jsonl nor .parquet.
        CheckpointError: the file cannot be written.
    """
    if target == "-":
        with _named("standard output"):
            yield lambda rows: _write_lines(sys.stdout, rows)
            sys.stdout.flush()
        return
    suffix = PurePosixPath(target).suffix
    openers = {".jsonl": _json_lines, ".parquet": functools.partial(_parquet, best=best)}
    if suffix not in openers:
        raise ConfigError(f"--output {target}: ends in {suffix!r}; use .jsonl or .parquet, or - for the screen")
    with _named(target), complete_at(target) as unfinished, openers[suffix](unfinished) as write:
        yield write


@contextlib.contextmanager
def _named(target: str) -> Iterator[None]:
    """Name the target in the error of a full disk: a write that fails does not know its file's name."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise CheckpointError(f"{target}: cannot be written: {os.strerror(error.errno)}") from None


@contextlib.contextmanager
def _json_lines(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda rows: _write_lines(file, rows)


def _write_lines(file: TextIO, rows: list[dict[str, Any]]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.flush()


@contextlib.contextmanager
def _parquet(path: Path, best: bool) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    numbers = pa.list_(pa.float64())
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("line", pa.int64()),
            ("task", pa.string()),
            ("route", pa.map_(pa.string(), pa.float64())),
            ("rewards", numbers),
            ("capabilities", pa.map_(pa.string(), numbers)),
            ("uncertainty", numbers),
            ("temperature", pa.float64()),
            ("truncated", pa.list_(pa.bool_())),
            *([("best", pa.int64()), ("chosen", pa.string())] if best else []),
        ]
    )
    buffer: list[dict[str, Any]] = []

    def write(rows: list[dict[str, Any]], minimum: int = _GROUP_ROWS) -> None:
        buffer.extend(rows)
        if len(buffer) >= minimum:
            writer.write_table(pa.Table.from_pylist(buffer, schema=schema))
            buffer.clear()

    with parquet.ParquetWriter(path, schema) as writer:
        yield write
        write([], minimum=1)
