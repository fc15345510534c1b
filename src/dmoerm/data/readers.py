"""Read preference data from files and datasets: groups for training and evaluation, queries for scoring.

    rows (of a file or dataset)  →  native fields (by the format's columns)  →  groups, validated

No row is dropped silently: it becomes a group or a part of one, an error in `bad`, or a count in `skipped`.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, DataError, did_you_mean
from ..schema import Group, Query, is_empty, parse_group, parse_query, prompt_key
from .formats import detect_format, find_formats, named_format, unknown_columns
from .rows import PlacedRow, open_rows
from .values import Row, SkippedRow

ColumnMap = Mapping[str, str]
"""Field of a row format → the column that holds it, where the names differ."""

_MISSPELLED = 0.85  # similarity of `promt` and `prompt`, but not of `Survey Question` and `question`
_NEXT_FIELD = re.compile(r",(?=[^,=]+=)")  # a column's name may contain a comma


@dataclass
class Reading:
    """The content of one source.

    Attributes:
        groups: the groups, in the order of their (first) rows.
        bad: one error, with file and line, for each invalid row.
        skipped: reason → count. The first word says what is counted: "row:" rows without a usable preference,
            "response:" single responses, "pair:" pairs of responses.
        unknown_columns: column that is not read → number of rows that have it.
        rows: number of rows, blank lines not counted.
        format: the name of the row format; empty if no row could be read.
    """

    groups: list[Group] = field(default_factory=list)
    bad: list[DataError] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
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
        columns: field of the format → column of the source, where the names differ.
        task: the task of rows that have none.
        on_error: `raise` raises an error at the first bad row; `collect` appends bad rows to `Reading.bad`.
        into: called with each group, in place of `Reading.groups`; for data that may not fit in memory.
        rows: rows that were read from the source.

    Raises:
        DataError: the source is missing, unreadable or empty, or (with `raise`) a row is bad.
        ConfigError: the format is unknown.
    """
    reading, row_format, columns = Reading(), named_format(format), columns or {}
    parts: dict[str, tuple[int, list[dict[str, Any]]]] = {}  # task, tools and prompt → first line, single responses

    @contextlib.contextmanager
    def row_at(line: int) -> Iterator[None]:
        try:
            yield
        except SkippedRow as error:
            reading.skipped[f"row: {error.message}"] += 1
        except DataError as error:
            if on_error == "raise":
                raise _placed(error, columns, source, line) from None
            reading.bad.append(_placed(error, columns, source, line))

    def add(fields: dict[str, Any], line: int, native: bool = False) -> None:
        group, removed = _group(fields | {"task": fields.get("task") or task}, native)
        (into or reading.groups.append)(group.at(source, line))
        reading.skipped.update(removed)

    for line, row in _mapped_rows(source, split, columns, rows):
        reading.rows += 1
        with row_at(line):
            if isinstance(row, DataError):
                raise row
            row_format = row_format or detect_format(row)
            reading.unknown_columns.update(unknown_columns(row, row_format))
            fields = row_format.read(row)
            if not row_format.one_response:
                add(fields, line, row_format.native)
                continue
            query = parse_query(fields | {"responses": ["…"]})  # the response may be empty: see `_group`
            key = repr((query.task, query.tools, prompt_key(query.prompt)))
            parts.setdefault(key, (line, []))[1].append(fields)
    for line, members in parts.values():
        with row_at(line):
            add(_joined(members), line)
    reading.format = row_format.name if row_format else ""
    return reading


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
    row_format, columns = named_format(format), columns or {}
    for line, row in _mapped_rows(source, split, columns, rows, streaming=True):
        try:
            if isinstance(row, SkippedRow) and on_bad is None:
                continue
            if isinstance(row, DataError):
                raise row
            row_format = row_format or detect_format(row)
            query = parse_query(row_format.read(row)).at(source, line)
        except DataError as error:
            if on_bad is None:
                raise _placed(error, columns, source, line) from None
            on_bad(_placed(error, columns, source, line))
            continue
        yield query


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join single responses to one prompt; `id`, `task` and `source` are those of the first."""
    fields = dict(parts[0])
    for name in ("responses", "scores"):
        fields[name] = [value for part in parts for value in part[name]]
    names = fields.get("capabilities", {})
    joined = {name: [grade for part in parts for grade in part["capabilities"][name]] for name in names}
    return fields | {"capabilities": {name: each for name, each in joined.items() if set(each) != {None}}}


def _group(fields: dict[str, Any], native: bool) -> tuple[Group, Counter[str]]:
    """Return the group of a row, and reason → number of its responses and pairs that are left out.

    Raises:
        DataError: the row is bad.
        SkippedRow: no preference between two texts remains.
    """
    fields, left_out = (fields, Counter[str]()) if native else _usable(fields)
    group = parse_group(fields)
    if len(set(group.responses)) == 1:
        raise SkippedRow("the responses are the same text", field="responses")
    if identical := group.identical_pairs():
        left_out["pair: identical responses with different grades"] = identical
    return group, left_out


def _usable(fields: Row) -> tuple[dict[str, Any], Counter[str]]:
    """Return the fields without empty and unscored responses, and reason → number of these; raise as `_group` does."""
    responses = fields["responses"]
    labels = {name: fields[name] for name in ("scores", "ranks") if fields.get(name) is not None}
    graded = fields.get("capabilities") or {}
    for name, grades in {**labels, **graded}.items():  # before responses are left out
        if len(grades) != len(responses):
            message = f"has {len(grades)} entries for {len(responses)} responses"
            raise DataError(message, field=name, value=grades, hint="give one number for each response")
    reasons = [
        "response: empty" if is_empty(text) else "response: no overall score" if score is None else ""
        for text, score in zip(responses, labels.get("scores", responses), strict=True)
    ]
    kept = [index for index, reason in enumerate(reasons) if not reason]
    if len(kept) < 2:
        raise SkippedRow("fewer than two usable responses to the prompt", field="responses")
    if not labels and not graded:
        raise SkippedRow("no preference is given", field="responses")
    rest: dict[str, Any] = {
        name: [values[i] for i in kept] for name, values in {**labels, "responses": responses}.items()
    }
    for name in ("capabilities", "annotators"):
        rest[name] = {label: [grades[i] for i in kept] for label, grades in (fields.get(name) or {}).items()}
    return {**fields, **rest}, Counter(filter(None, reasons))


# --- columns of other names ----------------------------------------------------------------------------------------


def parse_columns(options: Sequence[str]) -> dict[str, str]:
    """Parse the values of --map, each FIELD=COLUMN or several of them separated by commas.

    Raises:
        ConfigError: a value has another form, names a field twice, or names a field that does not exist.
    """
    columns: dict[str, str] = {}
    for part in (part for option in options for part in _NEXT_FIELD.split(option)):
        name, separator, column = (text.strip() for text in part.partition("="))
        if not (name and separator and column):
            raise ConfigError(f"--map: {part!r} is invalid; write FIELD=COLUMN, for example prompt=question")
        if name in columns:
            raise ConfigError(f"--map: {name} is given twice, as {columns[name]!r} and {column!r}; keep one")
        columns[name] = column
    check_columns(columns, "--map")
    return columns


def check_columns(columns: ColumnMap, source: str = "data.map") -> None:
    """Raise `ConfigError` if the map names a field that no format has."""
    known = _known_fields()
    for name, column in columns.items():
        if name not in known:
            alike = get_close_matches(name, known, 1, _MISSPELLED) or column not in known
            hint = did_you_mean(name, known) if alike else ""
            order = f"the order is FIELD=COLUMN: write {column}={name}" if column in known else ""
            hint = f"{hint} {order}".strip() or "docs/data.md lists the fields"
            raise ConfigError(f"{source}: no format has the field {name!r}; {hint}")


def _known_fields() -> list[str]:
    return sorted({name for row_format in find_formats().values() for name in row_format.columns})


def _mapped_rows(
    source: str | Path, split: str, columns: ColumnMap, rows: Iterable[PlacedRow] | None, streaming: bool = False
) -> Iterator[PlacedRow]:
    """Yield the rows with the mapped columns under the names of their fields; a column that a later row lacks is null.

    Raises:
        DataError: the source has no rows, or the first row lacks a column.
    """
    empty, checked, taken = rows is None, not columns, set(columns.values())
    for line, row in open_rows(source, split, streaming=streaming) if rows is None else rows:
        empty = False
        if isinstance(row, dict) and columns:
            missing = [] if checked else [item for item in columns.items() if item[1] not in row]
            for name, column in missing:
                hint = did_you_mean(column, row) or "use one of its columns"
                if name in row and column in _known_fields():
                    hint = f"the order is FIELD=COLUMN: write {column}={name}"
                message = f"the first row has no column {column!r}, which the column map names"
                raise DataError(message, file=source, line=line, field=name, value=list(row), hint=hint)
            checked, kept = True, {name: value for name, value in row.items() if name not in taken}
            row = kept | {name: row.get(column) for name, column in columns.items()}
        yield line, row
    if empty:
        raise DataError("contains no rows", file=source, hint="give a file with one group per line")


def _placed(error: DataError, columns: ColumnMap, source: str | Path, line: int) -> DataError:
    """Return a row's error with its file and line, and the column that its field was read from."""
    column = columns.get(error.field or "")
    name = error.field if column is None else f"{error.field} (column {column!r})"
    return DataError(error.message, file=source, line=line, field=name, value=error.value, hint=error.hint)
