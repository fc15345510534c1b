"""Read preference data from files and datasets: groups for training and evaluation, queries for scoring.

    rows (of a file or dataset)  →  raw examples (native fields)  →  groups, validated

No row is dropped silently: it becomes a group or a part of one, an error in `bad`, or a count in `skipped`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import DataError
from ..schema import Group, Query, is_empty, parse_group, parse_query, prompt_key
from .columns import ColumnMap, columns_of, mapped_rows, placed
from .formats import Format, RawExample, detect_format, named_format, unknown_columns
from .rows import PlacedRow, open_rows
from .values import SkippedRow, keep_responses


@dataclass
class Reading:
    """The content of one source.

    Attributes:
        groups: the groups, in the order of their (first) rows.
        bad: one error, with file and line, for each invalid row.
        skipped: reason → count. The first word says what is counted: "row:" rows without a usable preference,
            "response:" single responses, "pair:" pairs of responses.
        notes: decision of the reader → number of rows; these rows were kept.
        unknown_columns: column that is not read → number of rows that have it.
        rows: number of rows, blank lines not counted.
        format: the name of the row format; empty if no row could be read.
    """

    groups: list[Group] = field(default_factory=list)
    bad: list[DataError] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unknown_columns: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    format: str = ""


def read_groups(
    source: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    columns: ColumnMap | None = None,
    task: str | None = None,
    on_error: Literal["raise", "collect"] = "raise",
    into: Callable[[Group], object] | None = None,
    rows: Iterable[PlacedRow] | None = None,
) -> Reading:
    """Read all groups of a file (see `open_rows`), a dataset directory or a dataset `org/name[:config]`.

    Args:
        format: the name of a row format (see `dmoerm.data.formats`); `auto` detects it from the first row.
        split: the split of a dataset; ignored for files.
        columns: field of the format → column of the source, where the names differ; see `ColumnMap`.
        task: the task of rows that have none.
        on_error: `raise` raises an error at the first bad row; `collect` appends bad rows to `Reading.bad`.
        into: called with each group, in place of `Reading.groups`; for data that may not fit in memory.
        rows: rows that were read from the source.

    Raises:
        DataError: the source is missing, unreadable or empty, or (with `raise`) a row is bad.
        ConfigError: the format is unknown.
    """
    columns = columns_of(columns or {}, str(source))
    reader = _GroupReader(str(source), named_format(format), columns, task, on_error == "collect", into)
    rows = _rows_of(source, split, streaming=False) if rows is None else rows
    for line, row in mapped_rows(rows, columns, str(source)):
        reader.take(line, row)
    return reader.finish()


def read_queries(
    source: str | Path,
    *,
    format: str = "auto",
    split: str = "train",
    columns: ColumnMap | None = None,
    on_bad: Callable[[DataError], None] | None = None,
    rows: Iterable[PlacedRow] | None = None,
) -> Iterator[Query]:
    """Yield the queries of a source one at a time, in constant memory (except for a `.json` array).

    All formats of `read_groups` are supported. Preferences are dropped, responses stay in the order of the row (chosen
    before rejected), and each HelpSteer row is a separate query. A row whose responses cannot be separated from its
    prompt is a bad row. A record of empty cells is left out.

    Args:
        on_bad: called with each bad row's error.
        rows: rows that were read from the source.

    Raises:
        DataError: a row is bad and `on_bad` is None, or the source cannot be read.
    """
    row_format, columns = named_format(format), columns_of(columns or {}, str(source))
    rows = _rows_of(source, split, streaming=True) if rows is None else rows
    for line, row in mapped_rows(rows, columns, str(source)):
        try:
            if isinstance(row, SkippedRow) and on_bad is None:
                continue
            if isinstance(row, DataError):
                raise row
            row_format = row_format or detect_format(row)
            query = parse_query(row_format.read(row).fields).at(source, line)
        except DataError as error:
            if on_bad is None:
                raise placed(error, columns, str(source), line) from None
            on_bad(placed(error, columns, str(source), line))
            continue
        yield query


def _rows_of(source: str | Path, split: str, *, streaming: bool) -> Iterator[PlacedRow]:
    empty = True
    for placed_row in open_rows(source, split, streaming=streaming):
        empty = False
        yield placed_row
    if empty:
        raise DataError("contains no rows", file=source, hint="give a file with one group per line")


@dataclass
class _GroupReader:
    """Collect the rows of one source in a `Reading`."""

    source: str
    format: Format | None
    columns: Mapping[str, str]
    task: str | None
    collect: bool
    into: Callable[[Group], object] | None
    reading: Reading = field(default_factory=Reading)
    # task, tools and prompt → first line, and the rows of single responses
    joined: dict[str, tuple[int, list[RawExample]]] = field(default_factory=dict)

    def take(self, line: int, row: dict | DataError) -> None:
        self.reading.rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            self.format = self.format or detect_format(row)
            self.reading.unknown_columns.update(unknown_columns(row, self.format))
            example = self.format.read(row)
            if self.format.one_response:
                # The response may be empty; that is checked for the joined group.
                query = parse_query(example.fields | {"responses": ["…"]})
                key = repr((query.task, query.tools, prompt_key(query.prompt)))
                self.joined.setdefault(key, (line, []))[1].append(example)
            else:
                self._add(example, line)
        except DataError as error:
            self._fail(error, line)

    def finish(self) -> Reading:
        for line, examples in self.joined.values():
            try:
                self._add(_joined(examples), line)
            except DataError as error:
                self._fail(error, line)
        self.reading.format = self.format.name if self.format else ""
        return self.reading

    def _fail(self, error: DataError, line: int) -> None:
        if isinstance(error, SkippedRow):
            self.reading.skipped[f"row: {error.message}"] += 1
        elif self.collect:
            self.reading.bad.append(placed(error, self.columns, self.source, line))
        else:
            raise placed(error, self.columns, self.source, line) from None

    def _add(self, example: RawExample, line: int) -> None:
        example = example if self.format is None or self.format.strict else _usable(example)
        group = parse_group(example.fields | {"task": example.fields.get("task") or self.task})
        if len(set(group.responses)) == 1:
            raise SkippedRow("the responses are the same text", field="responses")
        if identical := group.identical_pairs():
            self.reading.skipped["pair: identical responses with different grades"] += identical
        (self.into or self.reading.groups.append)(group.at(self.source, line))
        self.reading.skipped.update(example.skipped)
        self.reading.notes.update(example.notes)


def _joined(examples: list[RawExample]) -> RawExample:
    """Join single responses to one prompt into one example; `id`, `task` and `source` are those of the first."""
    fields = dict(examples[0].fields)
    for name in ("responses", "scores"):
        fields[name] = [value for example in examples for value in example.fields[name]]
    names = fields.get("capabilities", {})
    joined = {name: [grade for e in examples for grade in e.fields["capabilities"][name]] for name in names}
    fields["capabilities"] = {name: grades for name, grades in joined.items() if any(g is not None for g in grades)}
    return RawExample(fields, tuple(note for example in examples for note in example.notes))


def _usable(example: RawExample) -> RawExample:
    """Return the example without empty responses. Raise `SkippedRow` if no preference between two texts remains."""
    fields = example.fields
    labels = {name: fields.get(name) for name in ("scores", "ranks")} | fields.get("capabilities", {})
    for name, grades in labels.items():  # before empty responses are removed
        if grades is not None and len(grades) != len(fields["responses"]):
            message = f"has {len(grades)} entries for {len(fields['responses'])} responses"
            raise DataError(message, field=name, value=grades, hint="give one number for each response")
    kept = [index for index, text in enumerate(fields["responses"]) if not is_empty(text)]
    reasons = example.skipped + ("response: empty",) * (len(fields["responses"]) - len(kept))
    if len(kept) < 2:
        raise SkippedRow("fewer than two usable responses to the prompt", field="responses")
    fields = keep_responses(fields, kept)
    if not any(fields.get(label) for label in ("scores", "ranks", "capabilities")):
        raise SkippedRow("no preference is given", field="responses")
    return RawExample(fields, example.notes, reasons)
