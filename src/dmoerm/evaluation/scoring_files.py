"""Score files of prompts and responses: the rows, the output formats, and shards of the input.

A row has: id, line (of the input file, from 1), task (the given or the most probable one; null: the general model
scored), route (task → probability), rewards, capabilities, uncertainty, truncated, contributions (each with one value
per response) and temperature. An empty response has the lowest reward, and null for capabilities, uncertainty and
contributions. With `best`, a row also has best (the index of the best response) and chosen (its text).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict

from ..data.rows import PlacedRow, file_kind, is_compressed, line_rows, open_rows, parquet_rows
from ..errors import CheckpointError, ConfigError, DataError
from ..io.storage import complete_at, open_binary
from ..model import DMoERM
from ..schema import Query
from ..scores import Score, Weights, check_weights

_LOG = logging.getLogger("dmoerm.scoring")
_GROUP_ROWS = 256  # of a Parquet row group
ScoreRow = dict[str, Any]
OnBad = Callable[[DataError], None]
Write = Callable[[list[ScoreRow]], None]


# --- rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowScorer:
    """Scores a stream of queries with one model, in memory that does not grow with the stream.

    Attributes:
        batch_tokens, deterministic, weights: as in `DMoERM.score`.
        task: scores all rows as this task; by default each row as its own task. The router decides for rows without a
            task that the model has; an unknown task is logged once.
        best: add the response with the highest reward to each row.
    """

    model: DMoERM
    batch_tokens: int | None = None
    task: str | None = None
    deterministic: bool = False
    weights: Weights | None = None
    best: bool = False

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[ScoreRow]:
        """Yield the queries' rows, in order.

        Args:
            on_bad: called with the error of a query that cannot be scored, which is then skipped; by default the error
                is raised.

        Raises:
            DataError: the model does not have the task, or a weight is invalid; while the rows are read,
                a query cannot be scored, or with `best`, a reward is not finite.
        """
        if self.task is not None:
            self.model.task_model(self.task)
        check_weights(self.weights, self.model.config.tasks, [self.task])
        prepared = self._prepared(queries, on_bad)
        scored = self.model.score_stream(prepared, self.batch_tokens, self.deterministic, self.weights)
        return (self._row(query, scores) for query, scores in scored)

    def _prepared(self, queries: Iterable[Query], on_bad: OnBad | None) -> Iterator[Query]:
        """Yield the queries with the task that scores them; leave out those that cannot be scored."""
        tasks, unknown = self.model.config.tasks, set[str]()
        for query in queries:
            task = query.task if self.task is None else self.task
            if task is not None and task not in tasks:
                if task not in unknown:
                    reason = f"the model has no task {task!r}; it has {', '.join(tasks)}"
                    _LOG.warning(f"{query.position}: the router decides, for {reason}")
                unknown.add(task)
                task = None
            if on_bad is not None:
                try:
                    self.model.encoder.encode(query)
                except DataError as error:
                    on_bad(error)
                    continue
            yield query if task == query.task else query.model_copy(update={"task": task})

    def _row(self, query: Query, scores: Sequence[Score]) -> ScoreRow:
        first, rewards = scores[0], [score.reward for score in scores]
        known = any(score.uncertainty is not None for score in scores)
        row = {
            "id": query.id,
            "line": query.line,
            "task": first.task,
            "route": first.route,
            "rewards": rewards,
            "capabilities": _columns([score.capabilities for score in scores]),
            "uncertainty": [score.uncertainty for score in scores] if known else None,
            "temperature": first.temperature,
            "truncated": [score.truncated for score in scores],
            "contributions": _columns([score.contributions for score in scores]),
        }
        if not self.best:
            return row
        if bad := [reward for reward in rewards if not math.isfinite(reward)]:
            message = "cannot choose the best response: a reward is not finite"
            raise DataError(message, file=query.position, value=bad[0], hint="score the text alone to find the cause")
        index = rewards.index(max(rewards))
        return row | {"best": index, "chosen": query.responses[index]}


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Return name → the rows' values."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


class ScoreCounts(BaseModel):
    """Numbers of scored queries and responses; `tasks`: task → queries."""

    queries: int = 0
    responses: int = 0
    tasks: dict[str, int] = {}

    def add(self, task: str | None, responses: int, queries: int = 1) -> None:
        """Add queries and responses of a task to the counts."""
        name = task or "(general model)"
        self.queries += queries
        self.responses += responses
        self.tasks = dict(sorted({**self.tasks, name: self.tasks.get(name, 0) + queries}.items()))


# --- output --------------------------------------------------------------------------------------------------------


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
    suffix = PurePosixPath(target).suffix
    if target != "-" and suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--output {target}: ends in {suffix!r}; use .jsonl or .parquet, or - for the screen")
    try:
        if target == "-":
            yield lambda rows: write_lines(sys.stdout, rows)
            sys.stdout.flush()
            return
        with complete_at(target) as unfinished:
            if suffix == ".parquet":
                with _parquet(unfinished, best) as write:
                    yield write
            else:
                with unfinished.open("w", encoding="utf-8") as file:
                    yield lambda rows: write_lines(file, rows)
    except OSError as error:  # of a full disk: a write that fails does not know its file's name
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        name = "standard output" if target == "-" else target
        raise CheckpointError(f"{name}: cannot be written: {os.strerror(error.errno)}") from None


def write_lines(file: TextIO, rows: list[ScoreRow]) -> None:
    """Write rows as JSON Lines."""
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.flush()


@contextlib.contextmanager
def _parquet(path: Path, best: bool) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

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
            ("contributions", pa.map_(pa.string(), numbers)),
            *([("best", pa.int64()), ("chosen", pa.string())] if best else []),
        ]
    )
    buffer: list[ScoreRow] = []

    def write(rows: list[ScoreRow], minimum: int = _GROUP_ROWS) -> None:
        buffer.extend(rows)
        if len(buffer) >= minimum:
            writer.write_table(pa.Table.from_pylist(buffer, schema=schema))
            buffer.clear()

    with parquet.ParquetWriter(path, schema) as writer:
        yield write
        write([], minimum=1)


# --- shards --------------------------------------------------------------------------------------------------------


class Shard(BaseModel):
    """Consecutive rows of one file, which can be read without the rows before them."""

    model_config = ConfigDict(frozen=True)
    file: str
    first: int = 1  # the number of its first line
    start: int = 0  # the byte offset of the first line; 0 for formats without lines
    lines: int = 0  # including blank ones
    rows: int

    def read(self) -> Iterator[PlacedRow]:
        """Yield the rows with their line numbers in the file."""
        kind = "" if is_compressed(self.file) else file_kind(self.file)
        if kind == ".parquet":
            yield from parquet_rows(self.file, self.first - 1, self.first - 1 + self.rows)
        elif kind in (".jsonl", ".ndjson"):
            with open_binary(self.file) as file:
                file.seek(self.start)
                yield from line_rows(itertools.islice(file, self.lines), self.first)
        else:
            yield from open_rows(self.file)


def shards_of(file: str, most: int) -> list[Shard]:
    """Split a file into shards of at most `most` rows, in order; reads the file once, for Parquet only the footer.

    JSON Lines are split at lines, Parquet at rows. A compressed file, a `.json` array or a table is one shard.

    Raises:
        DataError: the file does not exist, cannot be read or has no rows.
    """
    rows = open_rows(file)  # raises if the name is invalid
    kind = "" if is_compressed(file) else file_kind(file)
    try:
        if kind == ".parquet":
            from pyarrow import parquet

            with open_binary(file) as source:
                total = parquet.read_metadata(source).num_rows
            starts = range(0, total, most)
            shards = [Shard(file=file, first=start + 1, rows=min(most, total - start)) for start in starts]
        elif kind in (".jsonl", ".ndjson"):
            shards = list(_line_shards(file, most))
        else:
            shards = [Shard(file=file, rows=sum(1 for _ in rows))]
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", file=file, hint="check the file") from None
    if not sum(shard.rows for shard in shards):
        raise DataError("has no rows", file=file, hint="remove it from the input")
    return shards


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
