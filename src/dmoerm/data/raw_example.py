"""What a row format is, the form that it is converted to, and functions that read single fields.

A raw example is a row in the native format before validation, which is the task of `dmoerm.schema`. A function that
reads a field raises `DataError` with the field, the value and a hint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError

Row = Mapping[str, Any]

_NOT_GRADED = (None, "", "N/A", "n/a", "NA")
ORIGIN = frozenset({"id", "prompt_id", "task", "source", "tools"})
"""The columns that `origin` reads."""


@dataclass(frozen=True)
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


class SkippedRow(DataError):
    """A well-formed row without a usable preference: it is counted under its `message` and is not an error."""


@dataclass(frozen=True)
class RowFormat:
    """A row format.

    Attributes:
        name: the name for `format=`.
        fits: whether a row (its null fields removed) looks like this format.
        read: parses a row; raises `DataError` for a bad row and `SkippedRow` for one without a usable preference.
        columns: the columns that are read; all others are counted as unknown.
        order: formats of a lower order are tried first, formats of the same order by name.
        handwritten: people write such rows themselves, so a misspelled column is an error; published files may have
            any further columns.
        unsuggested: columns that are read but never suggested for a misspelled one.
        one_response: a row has a single response; the rows of one prompt are joined into a group.
        strict: an empty response is an error; in other formats it is left out and counted.
        open_columns: users name the columns themselves, so none is counted as unknown.
    """

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], RawExample]
    columns: frozenset[str]
    order: int = 1
    handwritten: bool = False
    unsuggested: frozenset[str] = frozenset()
    one_response: bool = False
    strict: bool = False
    open_columns: bool = False


def has(*names: str) -> Callable[[Row], bool]:
    """Return a function that tells whether a row has all of these columns."""
    return lambda row: all(name in row for name in names)


def need(row: Row, field: str) -> Any:
    """Return the value of a field. Raise `DataError` if it is missing or null."""
    value = row.get(field)
    if value is None:
        raise DataError("is missing", field=field, hint="give the field a value, or name the format of the rows")
    return value


def text_in(row: Row, field: str) -> str:
    """Return the value of a field, which must be a text."""
    return as_text(need(row, field), field)


def as_text(value: Any, field: str) -> str:
    """Return the value, which must be a text."""
    if not isinstance(value, str):
        raise DataError("must be a text", field=field, value=value, hint="write a JSON string")
    return value


def texts_in(row: Row, field: str) -> list[str]:
    """Return the value of a field, which must be a list of texts."""
    return [as_text(text, f"{field}.{index}") for index, text in enumerate(list_in(row, field))]


def list_in(row: Row, field: str) -> list[Any]:
    """Return the value of a field, which must be a list."""
    value = need(row, field)
    if not isinstance(value, list | tuple):
        raise DataError("must be a list", field=field, value=value, hint="write a JSON array")
    return list(value)


def mapping(value: Any, field: str) -> Row:
    """Return the value, which must be an object."""
    if not isinstance(value, Mapping):
        raise DataError("must be an object", field=field, value=value, hint="write a JSON object")
    return value


def number(value: Any, field: str) -> float:
    """Return the value as a finite number; numbers written as text are accepted."""
    try:
        result = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise DataError("must be a finite number", field=field, value=value, hint="correct the value")
    return result


def grade(value: Any, field: str) -> float | None:
    """Return the value as a grade: a finite number, or None for null, an empty text and "N/A"."""
    return None if isinstance(value, str | None) and value in _NOT_GRADED else number(value, field)


def origin(row: Row) -> dict[str, Any]:
    """Return the native fields `id`, `task`, `source` and `tools` that a row of another format has."""
    fields: dict[str, Any] = {}
    for name in ("prompt_id", "id"):
        if isinstance(row.get(name), str | int):
            fields["id"] = str(row[name])
    for name in ("task", "source"):
        if isinstance(row.get(name), str) and row[name]:
            fields[name] = row[name]
    if row.get("tools"):
        fields["tools"] = row["tools"]
    return fields


def task_name(label: str) -> str:
    """Return a dataset's own label as a plain task name: "Precise IF" → "precise_if"."""
    return re.sub(r"[^a-z0-9_-]+", "_", label.lower()).strip("_-")[:64].strip("_-") or "unnamed"


def keep_responses(fields: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the native row with only the responses at the indices `kept`, and their labels."""

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


def join_raw_examples(examples: list[RawExample]) -> RawExample:
    """Join single responses to one prompt into one example; `id`, `task` and `source` are those of the first."""
    fields = dict(examples[0].fields)
    fields["responses"] = [text for example in examples for text in example.fields["responses"]]
    fields["scores"] = [score for example in examples for score in example.fields["scores"]]
    names = examples[0].fields["capabilities"]
    joined = {name: [grade for e in examples for grade in e.fields["capabilities"][name]] for name in names}
    fields["capabilities"] = {name: grades for name, grades in joined.items() if any(g is not None for g in grades)}
    return RawExample(
        fields, tuple(n for e in examples for n in e.notes), tuple(r for e in examples for r in e.skipped)
    )
