"""The row formats that the readers know, and how the format of a file is told from its first row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, DataError
from .graded_rows import read_helpsteer, read_helpsteer3, read_mtmc, read_ultrafeedback
from .preference_rows import is_transcript, read_hh, read_rewardbench, read_trl
from .raw_example import RawExample, Row


@dataclass(frozen=True)
class RowFormat:
    """One way in which rows are written.

    Attributes:
        name: the name for `format=`.
        fits: whether a row (its null fields removed) looks like this format.
        read: parses a row; raises `DataError` for a bad row and `SkippedRow` for one without a usable preference.
        one_response: a row holds a single response, so that the rows of one prompt are joined into a group.
        strict: an empty response is an error; elsewhere it is left out and counted, since public files hold some.
    """

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], RawExample]
    one_response: bool = False
    strict: bool = False


def read_native(row: Row) -> RawExample:
    """A row in the native format; `response` or `completion` is accepted for a query's only response.

    Parquet and `datasets` write every column and every capability met in the file into every row, so nulls are absent
    values here.
    """
    fields = {name: value for name, value in row.items() if value is not None}
    for name in ("capabilities", "annotators"):
        if isinstance(fields.get(name), dict):
            fields[name] = {label: grades for label, grades in fields[name].items() if grades is not None}
    if isinstance(fields.get("id"), int):
        fields["id"] = str(fields["id"])
    for name in ("response", "completion"):
        if "responses" not in fields and isinstance(fields.get(name), str):
            fields["responses"] = [fields[name]]
    return RawExample(fields)


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


def _is_hh(row: Row) -> bool:
    return "prompt" not in row and is_transcript(row.get("chosen")) and is_transcript(row.get("rejected"))


def _is_rewardbench(row: Row) -> bool:
    if not _has("prompt", "chosen", "rejected")(row):
        return False
    chosen: Any = row["chosen"]
    if isinstance(chosen, str):
        return "subset" in row
    return isinstance(chosen, list | tuple) and bool(chosen) and isinstance(chosen[0], str)


FORMATS = (
    RowFormat("native", _has("prompt", "responses"), read_native, strict=True),
    RowFormat("mtmc", _has("src", "response", "rank"), read_mtmc),
    RowFormat("ultrafeedback", _has("instruction", "completions"), read_ultrafeedback),
    RowFormat("helpsteer3", _has("context", "response1", "response2"), read_helpsteer3),
    RowFormat("helpsteer", _has("prompt", "response", "helpfulness"), read_helpsteer, one_response=True),
    RowFormat("rewardbench", _is_rewardbench, read_rewardbench),
    RowFormat("hh", _is_hh, read_hh),
    RowFormat("trl", _has("chosen", "rejected"), read_trl),
)
"""In the order in which they are tried."""

FORMAT_NAMES = ("auto", *(row_format.name for row_format in FORMATS))
"""What `format=` accepts."""

_BY_NAME = {row_format.name: row_format for row_format in FORMATS}


def named_format(name: str) -> RowFormat | None:
    """The format of that name; None for `auto`. Raises `ConfigError` for a name that is not known."""
    if name not in FORMAT_NAMES:
        raise ConfigError(f"format {name!r} is not known; use one of {', '.join(FORMAT_NAMES)}")
    return _BY_NAME.get(name)


def detect_format(row: Row) -> RowFormat:
    """The format that a row looks like. Raises `DataError` where none fits."""
    given = {name: value for name, value in row.items() if value is not None}
    for row_format in FORMATS:
        if row_format.fits(given):
            return row_format
    if "prompt" in given and ("response" in given or "completion" in given):
        return _BY_NAME["native"]
    hint = f"see docs/data.md for the fields of {', '.join(FORMAT_NAMES[1:])}"
    raise DataError("the row is in no format that is known", value=list(row), hint=hint)
