"""The row formats that the readers know, and how the format of a file is told from its first row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, DataError
from .draft import Draft, Row
from .graded_rows import helpsteer3_draft, helpsteer_draft, mtmc_draft, ultrafeedback_draft
from .preference_rows import hh_draft, is_transcript, rewardbench_draft, trl_draft


@dataclass(frozen=True)
class RowFormat:
    """One way in which rows are written.

    Attributes:
        name: the name for `format=`.
        fits: whether a row (its null fields removed) looks like this format.
        draft: row → draft; raises `DataError` for a bad row and `LeftOut` for one without a usable preference.
        one_response: a row holds a single response, so that the rows of one prompt are joined into a group.
        strict: an empty response is an error; elsewhere it is left out and counted, since public files hold some.
    """

    name: str
    fits: Callable[[Row], bool]
    draft: Callable[[Row], Draft]
    one_response: bool = False
    strict: bool = False


def native_draft(row: Row) -> Draft:
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
    return Draft(fields)


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
    RowFormat("native", _has("prompt", "responses"), native_draft, strict=True),
    RowFormat("mtmc", _has("src", "response", "rank"), mtmc_draft),
    RowFormat("ultrafeedback", _has("instruction", "completions"), ultrafeedback_draft),
    RowFormat("helpsteer3", _has("context", "response1", "response2"), helpsteer3_draft),
    RowFormat("helpsteer", _has("prompt", "response", "helpfulness"), helpsteer_draft, one_response=True),
    RowFormat("rewardbench", _is_rewardbench, rewardbench_draft),
    RowFormat("hh", _is_hh, hh_draft),
    RowFormat("trl", _has("chosen", "rejected"), trl_draft),
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
    remedy = f"see docs/data.md for the fields of {', '.join(FORMAT_NAMES[1:])}"
    raise DataError("the row is in no format that is known", value=list(row), remedy=remedy)
