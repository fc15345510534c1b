"""Read columns under other names: a map from a field of a row format to the column that holds it.

The map may differ by file: `{"prompt": "question", "b.csv": {"prompt": "Frage"}}`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

from ..errors import ConfigError, DataError, did_you_mean
from .formats import find_formats
from .rows import PlacedRow

ColumnMap = Mapping[str, str | Mapping[str, str]]
"""Field of a row format → column of the files; and a file, by its path or the end of it → such a map for it alone."""

_MISSPELLED = 0.85  # similarity of `promt` and `prompt`, but not of `Survey Question` and `question`
_ORDER = "the order is FIELD=COLUMN: write {}={}"
_NEXT_FIELD = re.compile(r",(?=[^,=]+=)")  # a column's name may contain a comma


def parse_columns(options: Sequence[str], files: Collection[str] | None = None) -> dict[str, str | dict[str, str]]:
    """Parse the values of --map, each [FILE:]FIELD=COLUMN or several of them separated by commas.

    A file holds for the rest of its value.

    Args:
        files: the files that the map is for; None: they are checked later.

    Raises:
        ConfigError: a value has another form, names a field twice, or names a field or a file that does not exist.
    """
    columns: dict[str, Any] = {}
    for option in options:
        target = columns
        for part in _NEXT_FIELD.split(option):
            field, separator, column = (text.strip() for text in part.partition("="))
            file, _, field = field.rpartition(":")
            target = columns.setdefault(file, {}) if file else target
            if not (field and separator and column):
                raise ConfigError(f"--map: {part!r} is invalid; write FIELD=COLUMN, for example prompt=question")
            if field in target:
                raise ConfigError(f"--map: {field} is given twice, as {target[field]!r} and {column!r}; keep one")
            target[field] = column
    check_columns(columns, "--map", files)
    return columns


def check_columns(columns: ColumnMap, source: str = "data.map", files: Collection[str] | None = None) -> None:
    """Raise `ConfigError` if the map names a field that no format has, or a file that is not one of `files`."""
    known = _fields()
    for field, column in columns.items():
        if not isinstance(column, str):
            check_columns(column, f"{source}: {field}")
            if files is not None and not any(_names(field, file) for file in files):
                raise ConfigError(f"{source}: {field!r} is none of the files; use one of {', '.join(files)}")
        elif field not in known:
            alike = get_close_matches(field, known, 1, _MISSPELLED) or column not in known
            hint = did_you_mean(field, known) if alike else ""
            order = _ORDER.format(column, field) if column in known else ""
            hint = f"{hint} {order}".strip() or "docs/data.md lists the fields"
            raise ConfigError(f"{source}: no format has the field {field!r}; {hint}")


def columns_of(columns: ColumnMap, source: str) -> dict[str, str]:
    """Return field → column of one file: the map for all files, and over it those for this file."""
    chosen = {field: column for field, column in columns.items() if isinstance(column, str)}
    for file, of_file in columns.items():
        if not isinstance(of_file, str) and _names(file, source):
            chosen |= of_file
    return chosen


def _names(name: str, file: str) -> bool:
    """Return whether a name is the file's path or the end of it."""
    parts = PurePath(name).parts
    return PurePath(file).parts[-len(parts) :] == parts


def _fields() -> list[str]:
    return sorted(frozenset().union(*(row_format.columns for row_format in find_formats().values())))


def mapped_rows(rows: Iterable[PlacedRow], columns: Mapping[str, str], source: str) -> Iterator[PlacedRow]:
    """Yield the rows with the mapped columns under the names of their fields; a column that a later row lacks is null.

    Raises:
        DataError: the first row lacks a column.
    """
    first, taken = True, set(columns.values())
    for line, row in rows:
        if isinstance(row, DataError):
            yield line, row
            continue
        if first:
            _check_first(row, columns, source, line)
            first = False
        kept = {name: value for name, value in row.items() if name not in taken}
        yield line, kept | {field: row.get(column) for field, column in columns.items()}


def placed(error: DataError, columns: Mapping[str, str], source: str, line: int) -> DataError:
    """Return a row's error with its file and line, and the column that its field was read from."""
    column = columns.get(error.field or "")
    field = error.field if column is None else f"{error.field} (column {column!r})"
    return DataError(error.message, file=source, line=line, field=field, value=error.value, hint=error.hint)


def _check_first(row: Mapping[str, Any], columns: Mapping[str, str], source: str, line: int) -> None:
    for field, column in columns.items():
        if column not in row:
            alone = f"{PurePath(source).name}:{field}=COLUMN maps this file alone"
            hint = f"{did_you_mean(column, row) or 'use one of its columns;'} {alone}"
            hint = _ORDER.format(column, field) if field in row and column in _fields() else hint
            message = f"the first row has no column {column!r}, which the column map names"
            raise DataError(message, file=source, line=line, field=field, value=list(row), hint=hint)
