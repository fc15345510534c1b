"""The exceptions of dmoerm.

    DmoermError
    ├── DataError        an invalid row, label or text                        (also a ValueError)
    ├── TaxonomyError    an invalid taxonomy file                             (also a ValueError)
    ├── ConfigError      an invalid setting or option                         (also a ValueError)
    ├── BackboneError    a backbone that cannot be loaded, split or run       (also a ValueError)
    ├── TrainingError    a training step whose loss is not finite             (also an ArithmeticError)
    ├── LabelingError    a judge's endpoint that cannot be used               (also a RuntimeError)
    ├── ServerError      a reward server that fails or cannot be reached      (also a RuntimeError)
    ├── ClusterError     a Ray cluster that fails or cannot be reached        (also a RuntimeError)
    └── CheckpointError  a model folder that cannot be read or written        (also an OSError)

A message says what is wrong and where, shows the value, and gives a hint.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

_VALUE_LENGTH = 80
_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
}


class DmoermError(Exception):
    """The base class: `except DmoermError` catches every error that dmoerm raises deliberately."""


class DataError(DmoermError, ValueError):
    """A row, label or text is invalid.

    Attributes:
        message: what is wrong, in one clause.
        file, line: the position in the data; `line` counts from 1.
        field: the dotted name of the field.
        value: the invalid value.
        hint: how to correct it.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        value: object = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.file, self.line = message, file, line
        self.field, self.value, self.hint = field, value, hint
        position = ":".join(str(part) for part in (file, line) if part is not None)
        got = "" if value is None else f" (got {shorten(value)})"
        super().__init__(": ".join(filter(None, [position, field, message])) + got + (f"; {hint}" if hint else ""))

    def at(self, file: str | Path, line: int | None) -> DataError:
        """Return the error with its file and line."""
        return DataError(self.message, file=file, line=line, field=self.field, value=self.value, hint=self.hint)


class TaxonomyError(DmoermError, ValueError):
    """A taxonomy file is invalid."""


class ConfigError(DmoermError, ValueError):
    """A setting or an option is invalid."""


class BackboneError(DmoermError, ValueError):
    """A backbone cannot be loaded, split into trunk and branch, or run."""


class TrainingError(DmoermError, ArithmeticError):
    """The loss of a training step is not finite."""


class LabelingError(DmoermError, RuntimeError):
    """A judge's endpoint cannot be used: a wrong key or model, or an exceeded quota or budget."""


class ServerError(DmoermError, RuntimeError):
    """A reward server cannot be reached, or answers without rewards."""


class ClusterError(DmoermError, RuntimeError):
    """A Ray cluster cannot be reached, or lost the same work more often than allowed."""


class CheckpointError(DmoermError, OSError):
    """A model folder cannot be read or written."""


def shorten(value: object) -> str:
    """Return `repr(value)`, shortened for a message."""
    try:
        text = repr(value)
    except RecursionError:  # JSON nested just as deeply as its parser allows
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _VALUE_LENGTH else text[: _VALUE_LENGTH - 1] + "…"


def plain_fault(detail: Mapping[str, Any]) -> str:
    """Return what is wrong by one of pydantic's `errors()` in plain words, such as "must be at least 0"."""
    kind = str(detail["type"])
    if kind in _BOUNDS:
        return "must be " + _BOUNDS[kind].format(**detail["ctx"])
    if kind == "too_short":
        return "must have at least {min_length} entries, but has {actual_length}".format(**detail["ctx"])
    if (match := re.fullmatch(r"(.+?)_(type|parsing|from_float)", kind)) and match[1] in _KINDS:
        return f"must be {_KINDS[match[1]]}"
    return str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "must be", 1)


class Fault(NamedTuple):
    """The first error of an invalid pydantic object.

    Attributes:
        field: the dotted name of the field.
        message: what is wrong, in plain words.
        value: the invalid value; None if the field is missing.
        kind: pydantic's name of the error.
    """

    field: str
    message: str
    value: object
    kind: str


def first_fault(error: ValidationError) -> Fault:
    """Return what a one-line error says of an invalid object."""
    detail = error.errors()[0]
    kind, location = detail["type"], detail["loc"]
    location = location[:-2] if location[-1:] == ("[key]",) else location  # the message quotes the invalid key
    return Fault(
        ".".join(map(str, location)), plain_fault(detail), None if kind == "missing" else detail["input"], kind
    )


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return "did you mean PREFIXNAME?" with the known name that is spelled most alike; empty if none is."""
    alike = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {prefix}{alike[0]}?" if alike else ""
