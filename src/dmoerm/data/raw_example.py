"""The form that every row format is converted to, and functions that read single fields.

A raw example is a row in the native format before validation, which is the task of `dmoerm.schema`. Each function here
reads one field and raises `DataError` with the field, the value and a hint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError

Row = Mapping[str, Any]
_NOT_GRADED = (None, "", "N/A", "n/a", "NA")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class RawExample:
    """A row in the native format, not yet validated.

    Attributes:
        fields: the native row; its labels may be missing.
        notes: what the reader decided about the row and the user should know (counted in `Reading.notes`).
        skipped: one reason for each response of the row that was left out (counted in `Reading.skipped`).
    """

    fields: dict[str, Any]
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class SkippedRow(DataError):
    """A well-formed row that holds no usable preference: counted by its `message`, not an error of the file."""


def need(row: Row, field: str) -> Any:
    """The field's value. Raises `DataError` where it is missing or null."""
    value = row.get(field)
    if value is None:
        raise DataError("is missing", field=field, hint="add the field, or name the format of the rows")
    return value


def text_in(row: Row, field: str) -> str:
    """The field's value, which must be a text."""
    return as_text(need(row, field), field)


def as_text(value: Any, field: str) -> str:
    """The value, which must be a text."""
    if not isinstance(value, str):
        raise DataError("must be a text", field=field, value=value, hint="write a JSON string")
    return value


def texts_in(row: Row, field: str) -> list[str]:
    """The field's value, which must be a list of texts."""
    return [as_text(text, f"{field}.{index}") for index, text in enumerate(list_in(row, field))]


def list_in(row: Row, field: str) -> list[Any]:
    """The field's value, which must be a list."""
    value = need(row, field)
    if not isinstance(value, list | tuple):
        raise DataError("must be a list", field=field, value=value, hint="write a JSON array")
    return list(value)


def number(value: Any, field: str) -> float:
    """The value as a finite number; numbers written as text are accepted."""
    try:
        result = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise DataError("must be a finite number", field=field, value=value, hint="correct the value")
    return result


def grade(value: Any, field: str) -> float | None:
    """The value as a grade: a finite number, or None for null, an empty text and "N/A"."""
    return None if isinstance(value, str | None) and value in _NOT_GRADED else number(value, field)


def messages(value: Any, field: str) -> list[dict[str, str]]:
    """The value as a conversation: a list of {"role", "content"}; further keys are dropped."""
    if not isinstance(value, list | tuple) or not value:
        raise DataError("must be a list of messages", field=field, value=value, hint='give [{"role", "content"}, …]')
    return [_message(turn, f"{field}.{index}") for index, turn in enumerate(value)]


def _message(turn: Any, field: str) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise DataError("must be a message", field=field, value=turn, hint='give {"role": "user", "content": "…"}')
    role = turn.get("role")
    if role not in _ROLES:
        raise DataError("is no role", field=f"{field}.role", value=role, hint=f"use {', '.join(_ROLES)}")
    return {"role": role, "content": as_text(turn.get("content"), f"{field}.content")}


def origin(row: Row) -> dict[str, Any]:
    """The native fields `id`, `task` and `source`, as far as a foreign row has them."""
    fields: dict[str, Any] = {}
    for name in ("prompt_id", "id"):
        if isinstance(row.get(name), str | int):
            fields["id"] = str(row[name])
    for name in ("task", "source"):
        if isinstance(row.get(name), str) and row[name]:
            fields[name] = row[name]
    return fields


def task_name(label: str) -> str:
    """A dataset's own label as a task name that is safe as a folder name: "Precise IF" → "precise_if"."""
    return re.sub(r"[^a-z0-9_-]+", "_", label.lower()).strip("_-")[:64].strip("_-") or "unnamed"


def keep_responses(fields: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The native row with the responses at the indices `kept` alone, and their labels."""

    def at_kept(labels: Iterable[Any]) -> list[Any]:
        labels = list(labels)
        return [labels[index] for index in kept]

    result = dict(fields)
    for name in ("responses", "scores", "ranks"):
        if result.get(name) is not None:
            result[name] = at_kept(result[name])
    for name in ("capabilities", "annotators"):
        if result.get(name):
            result[name] = {label: at_kept(grades) for label, grades in result[name].items()}
    return result
