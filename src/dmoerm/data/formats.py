"""The supported row formats, and the detection of a file's format from its first row."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, DataError
from ..schema import Group
from .graded_rows import HELPSTEER_CAPABILITIES, read_helpsteer, read_helpsteer3, read_mtmc, read_ultrafeedback
from .preference_rows import is_transcript, read_hh, read_rewardbench, read_trl
from .raw_example import RawExample, Row


@dataclass(frozen=True)
class RowFormat:
    """A row format.

    Attributes:
        name: the name for `format=`.
        fits: whether a row (its null fields removed) looks like this format.
        read: parses a row; raises `DataError` for a bad row and `SkippedRow` for one without a usable preference.
        columns: the columns that are read.
        handwritten: people write such rows themselves, so a misspelled column is an error; published files may have
            any further columns, which are counted.
        one_response: a row has a single response; the rows of one prompt are joined into a group.
        strict: an empty response is an error; in other formats it is left out and counted.
    """

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], RawExample]
    columns: frozenset[str]
    handwritten: bool = False
    one_response: bool = False
    strict: bool = False


def read_native(row: Row) -> RawExample:
    """Read a row in the native format; a query's only response may be in `response` or `completion`.

    Parquet and `datasets` write all columns and capabilities of a file into every row, so null means absent.
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


_ORIGIN = {"id", "prompt_id", "task", "source"}
_CHOICE = {"chosen", "rejected", "margin", "score_chosen", "score_rejected"}
_ALIASES = {"response", "completion"}  # of `responses`, for queries
_INTERNAL = {"judged", "scores_derived"}  # not written by hand; `judge` is a likely column with another meaning
_SIMILARITY = 0.85  # `capabilites` and `score` are misspelled, `prompt_id` and `source_id` are other columns


def _columns(*names: str) -> frozenset[str]:
    return frozenset(names) | _ORIGIN


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


NATIVE_COLUMNS = frozenset(Group.model_fields)

FORMATS = (
    RowFormat("native", _has("prompt", "responses"), read_native, NATIVE_COLUMNS, handwritten=True, strict=True),
    RowFormat("mtmc", _has("src", "response", "rank"), read_mtmc, _columns("src", "tgt", "response", "rank", "label")),
    RowFormat(
        "ultrafeedback", _has("instruction", "completions"), read_ultrafeedback, _columns("instruction", "completions")
    ),
    RowFormat(
        "helpsteer3",
        _has("context", "response1", "response2"),
        read_helpsteer3,
        _columns("context", "response1", "response2", "domain", "overall_preference", "individual_preference"),
    ),
    RowFormat(
        "helpsteer",
        _has("prompt", "response", "helpfulness"),
        read_helpsteer,
        _columns("prompt", "response", "helpfulness", *HELPSTEER_CAPABILITIES),
        one_response=True,
    ),
    RowFormat(
        "rewardbench", _is_rewardbench, read_rewardbench, _columns("prompt", "chosen", "rejected", "subset", "domain")
    ),
    RowFormat("hh", _is_hh, read_hh, _columns(*_CHOICE)),
    RowFormat("trl", _has("chosen", "rejected"), read_trl, _columns("prompt", "system", *_CHOICE), handwritten=True),
)
"""All formats, in the order in which they are tried."""

FORMAT_NAMES = ("auto", *(row_format.name for row_format in FORMATS))
"""Valid values of `format=`."""

_BY_NAME = {row_format.name: row_format for row_format in FORMATS}


def named_format(name: str) -> RowFormat | None:
    """Return the format of this name, or None for `auto`. Raise `ConfigError` for an unknown name."""
    if name not in FORMAT_NAMES:
        raise ConfigError(f"format {name!r} is unknown; use one of {', '.join(FORMAT_NAMES)}")
    return _BY_NAME.get(name)


def detect_format(row: Row) -> RowFormat:
    """Return the format that matches a row. Raise `DataError` if none matches."""
    given = {name: value for name, value in row.items() if value is not None}
    for row_format in FORMATS:
        if row_format.fits(given):
            return row_format
    if "prompt" in given and ("response" in given or "completion" in given):
        return _BY_NAME["native"]
    hint = _did_you_mean(given, NATIVE_COLUMNS | _BY_NAME["trl"].columns)
    hint = hint or f"see docs/data.md for the columns of {', '.join(FORMAT_NAMES[1:])}"
    raise DataError("the row has an unknown format", value=list(row), hint=hint)


def unknown_columns(row: Row, row_format: RowFormat) -> list[str]:
    """Return the columns that the format does not read.

    Raises:
        DataError: in a format that people write themselves, a column is a misspelling of one that the row lacks.
    """
    given = {name: value for name, value in row.items() if value is not None}
    unknown = [name for name in given if name not in row_format.columns and name not in _ALIASES]
    if row_format.handwritten:
        for name in unknown:
            if hint := _did_you_mean({name}, row_format.columns - set(given) - _INTERNAL):
                raise DataError("is an unknown column", field=name, hint=hint)
    return unknown


def _did_you_mean(names: Iterable[str], known: Iterable[str]) -> str | None:
    """Return a hint for the first misspelled name."""
    for name in names:
        close = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=_SIMILARITY)
        if close and close[0] != name:
            return f"did you mean {close[0]!r}? correct the name {name!r}, or remove the column"
    return None
