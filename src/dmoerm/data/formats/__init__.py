"""Row formats: tables of the columns that a published data set has, and the native fields that they become.

Every module of this package with `FORMATS` adds formats, so a new one is a declaration in one of them, or a file:

    from dmoerm.data.formats import Format, always, column, columns

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
from ..values import Row, checked, grade, need

_SIMILARITY = 0.85  # `capabilites` and `score` are misspelled, `prompt_id` and `source_id` are other columns
_ORIGIN = frozenset({"id", "prompt_id", "task", "source", "tools"})
_UNSUGGESTED = frozenset({"response", "completion", "judge_labels", "scores_derived", "tools"})
Convert = Callable[[Any, str], Any]
"""Converts a value of the field with this name; raises `DataError` for an invalid value."""


@dataclass(frozen=True)
class Columns:
    """Columns that become one native field; `read` returns None where the row has no value for it."""

    names: tuple[str, ...]
    read: Callable[[Row], Any]


def always(value: Any) -> Columns:
    """Give the field the same value in every row."""
    return Columns((), lambda row: value)


def column(name: str, convert: Convert = checked) -> Columns:
    """Take one column, which every row must have."""
    return Columns((name,), lambda row: convert(need(row, name, Any), name))


def optional(name: str, convert: Convert = checked) -> Columns:
    """Take one column; a row may lack it."""
    return Columns((name,), lambda row: None if row.get(name) in (None, "", []) else convert(row[name], name))


def columns(*names: str, convert: Convert = checked) -> Columns:
    """Take a list of one value from each column."""
    return Columns(names, lambda row: [convert(need(row, name, Any), name) for name in names])


def each(name: str, key: str, convert: Convert = checked) -> Columns:
    """Take a list of the values under a key of the objects in a column."""

    def read(row: Row) -> list[Any]:
        entries = enumerate(need(row, name, list[dict]))
        return [convert(need(entry, key, Any), f"{name}.{i}.{key}") for i, entry in entries]

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
        fields: native field → columns that it is read from. Every format but the native one also reads `id`, `task`,
            `source` and `tools`.
        compute: returns the native fields that no single column gives; it may raise `SkippedRow`.
        also: further columns that `compute` reads; all others are counted as unknown.
        looks: a further condition on a row of this format.
        order: formats of a lower order are tried first, formats of the same order by name.
        handwritten: people write such rows themselves, so a misspelled column is an error; published files may have
            any further columns.
        native: the project's own format. An empty response is an error; in other formats it is left out and counted.
        one_response: a row has a single response; the rows of one prompt are joined into a group.
        open_columns: users name the columns themselves, so none is counted as unknown.
    """

    name: str
    needs: Set[str] = frozenset()
    fields: Mapping[str, Columns] = field(default_factory=dict)
    compute: Callable[[Row], dict[str, Any]] = lambda row: {}
    also: Set[str] = frozenset()
    looks: Callable[[Row], bool] = lambda row: True
    order: int = 1
    handwritten: bool = False
    native: bool = False
    one_response: bool = False
    open_columns: bool = False

    @property
    def columns(self) -> Set[str]:
        """The columns that are read."""
        declared = {name for each in self.fields.values() for name in each.names}
        return declared | self.needs | self.also | (frozenset() if self.native else _ORIGIN)

    def fits(self, row: Row) -> bool:
        """Return whether a row (its null fields removed) looks like this format."""
        return self.needs <= row.keys() and self.looks(row)

    def read(self, row: Row) -> dict[str, Any]:
        """Return the native fields of a row, not yet validated; labels may be missing.

        Raises:
            DataError: the row is bad.
            SkippedRow: the row has no usable preference.
        """
        values = {name: each.read(row) for name, each in self.fields.items()}
        fields = {} if self.native else origin(row)
        return fields | {name: value for name, value in values.items() if value is not None} | self.compute(row)


def origin(row: Row) -> dict[str, Any]:
    """Return the native fields `id`, `task`, `source` and `tools` that a row of another format has."""
    fields = {name: row[name] for name in ("task", "source") if isinstance(row.get(name), str) and row[name]}
    fields |= {"tools": row["tools"]} if row.get("tools") else {}
    identity = [str(row[name]) for name in ("id", "prompt_id") if isinstance(row.get(name), str | int)]
    return fields | ({"id": identity[0]} if identity else {})


def find_formats() -> dict[str, Format]:
    """Import all modules of this package and return name → format, in the order in which formats are tried."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    formats = sorted((f for module in modules for f in getattr(module, "FORMATS", ())), key=lambda f: (f.order, f.name))
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
    hint = _did_you_mean(given, {name for f in formats.values() if f.handwritten for name in f.columns})
    hint = hint or "map its columns, as in --map prompt=…,chosen=…,rejected=…, or see docs/data.md for the formats"
    raise DataError("the row has an unknown format", value=list(row), hint=hint)


def unknown_columns(row: Row, row_format: Format) -> list[str]:
    """Return the columns that the format does not read.

    Raises:
        DataError: in a format that people write themselves, a column is a misspelling of one that the row lacks.
    """
    if row_format.open_columns:
        return []
    known, given = row_format.columns, [name for name, value in row.items() if value is not None]
    unknown = [name for name in given if name not in known]
    if row_format.handwritten:
        for name in unknown:
            if hint := _did_you_mean([name], known - set(given)):
                raise DataError("is an unknown column", field=name, hint=hint)
    return unknown


def _did_you_mean(names: Iterable[str], known: Set[str]) -> str | None:
    """Return a hint for the first misspelled name."""
    for name in names:
        close = difflib.get_close_matches(name.lower(), sorted(known - _UNSUGGESTED), n=1, cutoff=_SIMILARITY)
        if close and close[0] != name:
            return f"did you mean {close[0]!r}? correct the name {name!r}, or remove the column"
    return None
