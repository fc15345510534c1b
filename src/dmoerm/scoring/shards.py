"""Split files into shards that are scored separately, each of which can be read without the rows before it.

JSON Lines are split at lines, Parquet at rows; a compressed file, a `.json` array and a table as text are one shard
each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from ..data.rows import PlacedRow, file_kind, is_compressed, line_rows, open_rows, parquet_rows
from ..errors import DataError
from ..io.storage import open_binary


class Shard(BaseModel):
    """Consecutive rows of one file.

    Attributes:
        first: the number of its first line, from 1.
        start: the byte offset of the first line; 0 for formats without lines.
        lines: the number of lines, including blank ones.
        rows: the number of rows.
    """

    model_config = ConfigDict(frozen=True)
    file: str
    first: int = 1
    start: int = 0
    lines: int = 0
    rows: int


def shards_of(file: str, most: int) -> list[Shard]:
    """Split a file into shards of at most `most` rows, in order; reads the file once, for Parquet only the footer.

    Raises:
        DataError: the file does not exist, cannot be read or has no rows.
    """
    rows = open_rows(file)  # raises if the name is invalid
    splitters = {".parquet": _parquet_shards, ".jsonl": _line_shards, ".ndjson": _line_shards}
    if is_compressed(file) or file_kind(file) not in splitters:
        shards = [Shard(file=file, rows=sum(1 for _ in rows))]
    else:
        try:
            shards = list(splitters[file_kind(file)](file, most))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", file=file, hint="check the file") from None
    if not sum(shard.rows for shard in shards):
        raise DataError("has no rows", file=file, hint="remove it from the input")
    return shards


def shard_rows(shard: Shard) -> Iterator[PlacedRow]:
    """Yield the rows of a shard with their line numbers in the file."""
    kind = "" if is_compressed(shard.file) else file_kind(shard.file)
    if kind == ".parquet":
        yield from parquet_rows(shard.file, shard.first - 1, shard.first - 1 + shard.rows)
    elif kind in (".jsonl", ".ndjson"):
        with open_binary(shard.file) as file:
            file.seek(shard.start)
            yield from line_rows(itertools.islice(file, shard.lines), shard.first)
    else:
        yield from open_rows(shard.file)


def _parquet_shards(file: str, most: int) -> Iterator[Shard]:
    import pyarrow.parquet as parquet

    with open_binary(file) as source:
        total = parquet.read_metadata(source).num_rows
    for start in range(0, total, most):
        yield Shard(file=file, first=start + 1, rows=min(most, total - start))


def _line_shards(file: str, most: int) -> Iterator[Shard]:
    first, start, lines, rows, offset = 1, 0, 0, 0, 0
    with open_binary(file) as source:
        for line in source:
            if rows == most:
                yield Shard(file=file, first=first, start=start, lines=lines, rows=rows)
                first, start, lines, rows = first + lines, offset, 0, 0
            offset += len(line)
            lines += 1
            rows += bool(line.strip())
    if rows:
        yield Shard(file=file, first=first, start=start, lines=lines, rows=rows)
