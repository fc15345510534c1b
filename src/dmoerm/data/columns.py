"""Read columns under other names: a map from a field of a row format to the column that holds it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import ConfigError, DataError, did_you_mean
from .formats import find_formats
from .rows import PlacedRow

ColumnMap = Mapping[str, str]
"""Field of a row format → column of the file."""

_NEXT_FIELD = re.compile(r",(?=[^,=]+=)")  # a column's name may contain a comma


def parse_columns(options: Sequence[str]) -> dict[str, str]:
    """Parse the values of --map, each FIELD=COLUMN or several of them separated by commas.

    Raises:
        ConfigError: a value has another form, names a field twice, or names a field that no format has.
    """
    columns: dict[str, str] = {}
    for part in (part for option in options for part in _NEXT_FIELD.split(option)):
        field, separator, column = (text.strip() for text in part.partition("="))
        if not (field and separator and column):
            raise ConfigError(f"--map: {part!r} is invalid; write FIELD=COLUMN, for example prompt=question")
        if field in columns:
            raise ConfigError(f"--map: {field} is given twice, as {columns[field]!r} and {column!r}; keep one")
        columns[field] = column
    check_columns(columns, "--map")
    return columns


def check_columns(columns: ColumnMap, source: str = "data.map") -> None:
    """Raise `ConfigError` if the map names a field that no format has."""
    known = sorted(frozenset().union(*(row_format.columns for row_format in find_formats().values())))
    for field in columns:
        if field not in known:
            hint = did_you_mean(field, known) or "docs/data.md lists the fields"
            raise ConfigError(f"{source}: no format has the field {field!r}; {hint}")


def mapped_rows(rows: Iterable[PlacedRow], columns: ColumnMap, source: str) -> Iterator[PlacedRow]:
    """Yield the rows with the mapped columns under the names of their fields; a column that a later row lacks is null.

    Raises:
        DataError: the first row lacks a column.
    """
    first = True
    for line, row in rows:
        if isinstance(row, DataError):
            yield line, row
            continue
        if first:
            _check_first(row, columns, source, line)
            first = False
        yield line, _mapped(row, columns)


def placed(error: DataError, columns: ColumnMap, source: str, line: int) -> DataError:
    """Return a row's error with its file and line, and the column that its field was read from."""
    at = error.at(source, line)
    if (column := columns.get(error.field or "")) is None:
        return at
    field = f"{error.field} (column {column!r})"
    return DataError(at.message, file=source, line=line, field=field, value=at.value, hint=at.hint)


def _check_first(row: Mapping[str, Any], columns: ColumnMap, source: str, line: int) -> None:
    for field, column in columns.items():
        if column not in row:
            hint = did_you_mean(column, row) or "use one of its columns"
            message = f"the first row has no column {column!r}, which the column map names"
            raise DataError(message, file=source, line=line, field=field, value=list(row), hint=hint)


def _mapped(row: Mapping[str, Any], columns: ColumnMap) -> dict[str, Any]:
    taken = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {field: row.get(column) for field, column in columns.items()}
