"""The supported row formats, one file each: a module of this package with a `FORMAT` is a row format.

A format reads a row of a file into a `RawExample`; `RowFormat` describes it. `dmoerm.data.readers` validates the
result.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable

from ...errors import ConfigError, DataError
from ..raw_example import Row, RowFormat

_SIMILARITY = 0.85  # `capabilites` and `score` are misspelled, `prompt_id` and `source_id` are other columns


def find_formats() -> dict[str, RowFormat]:
    """Import all modules of this package and return name → format, in the order in which formats are tried."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    formats = sorted((m.FORMAT for m in modules if hasattr(m, "FORMAT")), key=lambda f: (f.order, f.name))
    return {row_format.name: row_format for row_format in formats}


def named_format(name: str) -> RowFormat | None:
    """Return the format of this name, or None for `auto`. Raise `ConfigError` for an unknown name."""
    formats = find_formats()
    if name != "auto" and name not in formats:
        raise ConfigError(f"format {name!r} is unknown; use one of {', '.join(['auto', *formats])}")
    return formats.get(name)


def detect_format(row: Row) -> RowFormat:
    """Return the first format that matches a row, or the row with its nulls: the first row may lack a value.

    Raises:
        DataError: no format matches.
    """
    formats = find_formats()
    given = {name: value for name, value in row.items() if value is not None}
    for columns in (given, row):
        for row_format in formats.values():
            if row_format.fits(columns):
                return row_format
    if "prompt" in given and ("response" in given or "completion" in given):
        return formats["native"]  # a query: no preference and a single response
    suggestions = [f.columns - f.unsuggested for f in formats.values() if f.handwritten]
    hint = _did_you_mean(given, frozenset().union(*suggestions))
    hint = hint or "map its columns, as in --map prompt=…,chosen=…,rejected=…, or see docs/data.md for the formats"
    raise DataError("the row has an unknown format", value=list(row), hint=hint)


def unknown_columns(row: Row, row_format: RowFormat) -> list[str]:
    """Return the columns that the format does not read.

    Raises:
        DataError: in a format that people write themselves, a column is a misspelling of one that the row lacks.
    """
    if row_format.open_columns:
        return []
    given = {name: value for name, value in row.items() if value is not None}
    unknown = [name for name in given if name not in row_format.columns]
    if row_format.handwritten:
        for name in unknown:
            if hint := _did_you_mean({name}, row_format.columns - row_format.unsuggested - set(given)):
                raise DataError("is an unknown column", field=name, hint=hint)
    return unknown


def _did_you_mean(names: Iterable[str], known: Iterable[str]) -> str | None:
    """Return a hint for the first misspelled name."""
    for name in names:
        close = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=_SIMILARITY)
        if close and close[0] != name:
            return f"did you mean {close[0]!r}? correct the name {name!r}, or remove the column"
    return None
