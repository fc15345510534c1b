"""Row formats: tables of the columns that a published data set has, and the native fields that they become.

Every module of this package with `FORMATS` adds formats, so a new one is a declaration in one of them, or a file:

    FORMATS = (Format("qa", needs={"q", "good", "bad"},
                      fields={"prompt": column("q"), "responses": columns("good", "bad"), "ranks": always([1, 2])}),)
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError, DataError
from ..values import ORIGIN, Row, as_text, grade, mappings_in, need, origin

_SIMILARITY = 0.85  # `capabilites` and `score` are misspelled, `prompt_id` and `source_id` are other columns
Convert = Callable[[Any, str], Any]
"""Converts a value of the field with this name; raises `DataError` for an invalid value."""


@dataclass
class RawExample:
    """A row in the native format before validation.

    Attributes:
        fields: the native row; its labels may be missing.
        notes: decisions of the reader that the user should know about (counted in `Reading.notes`).
        skipped: one reason for each response that was left out (counted in `Reading.skipped`).
    """

    fields: dict[str, Any]
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Columns that become one native field; `read` returns None where the row has no value for it."""

    names: tuple[str, ...]
    read: Callable[[Row], Any]


def always(value: Any) -> Columns:
    """Give the field the same value in every row."""
    return Columns((), lambda row: value)


def column(name: str, convert: Convert = as_text) -> Columns:
    """Take one column, which every row must have."""
    return Columns((name,), lambda row: convert(need(row, name), name))


def optional(name: str, convert: Convert = as_text) -> Columns:
    """Take one column; a row may lack it."""
    return Columns((name,), lambda row: None if row.get(name) in (None, "", []) else convert(row[name], name))


def columns(*names: str, convert: Convert = as_text) -> Columns:
    """Take a list of one value from each column."""
    return Columns(names, lambda row: [convert(need(row, name), name) for name in names])


def each(name: str, key: str, convert: Convert = as_text) -> Columns:
    """Take a list of the values under a key of the objects in a column."""

    def read(row: Row) -> list[Any]:
        return [convert(need(entry, key), f"{name}.{i}.{key}") for i, entry in enumerate(mappings_in(row, name))]

    return Columns((name,), read)


def grades(*names: str) -> Columns:
    """Take the capability grades of a single response, one column for each capability."""
    return Columns(names, lambda row: {name: [grade(row.get(name), name)] for name in names})


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        name: the name for `format=`.
        needs: the columns that every row has; a row without one has another format.
        fields: native field → columns that it is read from.
        compute: adds what no single column says; it may return notes, and raise `SkippedRow`.
        also: further columns that `compute` reads; all others are counted as unknown.
        looks: a further condition on a row of this format.
        order: formats of a lower order are tried first, formats of the same order by name.
        handwritten: people write such rows themselves, so a misspelled column is an error; published files may have
            any further columns.
        unsuggested: columns that are read but never suggested for a misspelled one.
        one_response: a row has a single response; the rows of one prompt are joined into a group.
        strict: an empty response is an error; in other formats it is left out and counted.
        open_columns: users name the columns themselves, so none is counted as unknown.
        origin: `id`, `task`, `source` and `tools` are read, as in every format but the native one.
    """

    name: str
    needs: Set[str] = frozenset()
    fields: Mapping[str, Columns] = field(default_factory=dict)
    compute: Callable[[Row], RawExample] | None = None
    also: Set[str] = frozenset()
    looks: Callable[[Row], bool] = lambda row: True
    order: int = 1
    handwritten: bool = False
    unsuggested: Set[str] = frozenset()
    one_response: bool = False
    strict: bool = False
    open_columns: bool = False
    origin: bool = True

    @property
    def columns(self) -> Set[str]:
        """The columns that are read."""
        declared = {name for each in self.fields.values() for name in each.names}
        return declared | self.needs | self.also | (ORIGIN if self.origin else set())

    def fits(self, row: Row) -> bool:
        """Return whether a row (its null fields removed) looks like this format."""
        return self.needs <= row.keys() and self.looks(row)

    def read(self, row: Row) -> RawExample:
        """Read a row. Raise `DataError` for a bad row and `SkippedRow` for one without a usable preference."""
        values = {name: each.read(row) for name, each in self.fields.items()}
        fields = origin(row) if self.origin else {}
        fields |= {name: value for name, value in values.items() if value is not None}
        if self.compute is None:
            return RawExample(fields)
        computed = self.compute(row)
        return RawExample(fields | computed.fields, computed.notes, computed.skipped)


def find_formats() -> dict[str, Format]:
    """Import all modules of this package and return name → format, in the order in which formats are tried."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    formats = sorted((f for module in modules for f in module.FORMATS), key=lambda f: (f.order, f.name))
    return {row_format.name: row_format for row_format in formats}


def named_format(name: str) -> Format | None:
    """Return the format of this name, or None for `auto`. Raise `ConfigError` for an unknown name."""
    formats = find_formats()
    if name != "auto" and name not in formats:
        raise ConfigError(f"format {name!r} is unknown; use one of {', '.join(['auto', *formats])}")
    return formats.get(name)


def detect_format(row: Row) -> Format:
    """Return the first format that matches a row, or the row with its nulls: the first row may lack a value.

    Raises:
        DataError: no format matches.
    """
    formats = find_formats()
    given = {name: value for name, value in row.items() if value is not None}
    for candidate in (given, row):
        for row_format in formats.values():
            if row_format.fits(candidate):
                return row_format
    if "prompt" in given and ("response" in given or "completion" in given):
        return formats["native"]  # a query: no preference and a single response
    suggestions = [f.columns - f.unsuggested for f in formats.values() if f.handwritten]
    hint = _did_you_mean(given, frozenset().union(*suggestions))
    hint = hint or "map its columns, as in --map prompt=…,chosen=…,rejected=…, or see docs/data.md for the formats"
    raise DataError("the row has an unknown format", value=list(row), hint=hint)


def unknown_columns(row: Row, row_format: Format) -> list[str]:
    """Return the columns that the format does not read.

    Raises:
        DataError: in a format that people write themselves, a column is a misspelling of one that the row lacks.
    """
    if row_format.open_columns:
        return []
    known = row_format.columns
    given = {name for name, value in row.items() if value is not None}
    unknown = [name for name in row if name in given and name not in known]
    if row_format.handwritten:
        for name in unknown:
            if hint := _did_you_mean({name}, known - row_format.unsuggested - given):
                raise DataError("is an unknown column", field=name, hint=hint)
    return unknown


def _did_you_mean(names: Iterable[str], known: Iterable[str]) -> str | None:
    """Return a hint for the first misspelled name."""
    for name in names:
        close = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=_SIMILARITY)
        if close and close[0] != name:
            return f"did you mean {close[0]!r}? correct the name {name!r}, or remove the column"
    return None
