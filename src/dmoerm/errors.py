"""Every error that dmoerm raises on purpose.

    DmoermError
    ├── DataError        a row, a label or a text that cannot be used   (also a ValueError)
    ├── TaxonomyError    a taxonomy file that cannot be used            (also a ValueError)
    ├── ConfigError      a setting that cannot be used                  (also a ValueError)
    ├── BackboneError    a backbone that cannot be cut or run           (also a ValueError)
    ├── TrainingError    a step whose loss is no number                 (also an ArithmeticError)
    ├── LabelingError   a judge that cannot be asked                   (also a RuntimeError)
    ├── ServerError      a reward server that cannot be asked           (also a RuntimeError)
    ├── ClusterError     a Ray cluster that cannot be used, lost work   (also a RuntimeError)
    └── CheckpointError    a model directory that cannot be read, written (also an OSError)

A message says what was wrong, where, the value met, and the hint.
"""

from __future__ import annotations

from pathlib import Path

_VALUE_LENGTH = 80


class DmoermError(Exception):
    """The one base: `except DmoermError` catches all that dmoerm raises on purpose."""


class DataError(DmoermError, ValueError):
    """A row, a label or a text that cannot be used.

    Attributes:
        message: what is wrong, in one clause.
        file, line: where; `line` counts from 1.
        field: the field's dotted name.
        value: the value met.
        hint: what the caller can do about it.
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
        super().__init__(self._message())

    def _message(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        parts = [f"{place}: " if place else "", f"{self.field}: " if self.field else "", self.message]
        if self.value is not None:
            parts.append(f" (got {shorten(self.value)})")
        if self.hint:
            parts.append(f"; {self.hint}")
        return "".join(parts)

    def at(self, file: str | Path, line: int) -> DataError:
        """The same error with its place filled in."""
        return DataError(self.message, file=file, line=line, field=self.field, value=self.value, hint=self.hint)


class TaxonomyError(DmoermError, ValueError):
    """A taxonomy file that cannot be used."""


class ConfigError(DmoermError, ValueError):
    """A setting that cannot be used."""


class BackboneError(DmoermError, ValueError):
    """A backbone that cannot be cut into trunk and branch, or cannot be run."""


class TrainingError(DmoermError, ArithmeticError):
    """A step of the training whose loss is not finite."""


class LabelingError(DmoermError, RuntimeError):
    """A judge that cannot be asked: a wrong key, no such model, a used-up quota or budget."""


class ServerError(DmoermError, RuntimeError):
    """A reward server that cannot be asked, or answers with no rewards."""


class ClusterError(DmoermError, RuntimeError):
    """A Ray cluster that cannot be reached, or that lost the same work more often than it may."""


class CheckpointError(DmoermError, OSError):
    """A model directory that cannot be read or written."""


def shorten(value: object) -> str:
    """`repr(value)`, cut so that a huge text stays readable in a message."""
    try:
        text = repr(value)
    except RecursionError:  # JSON nested just as deeply as its parser allows
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _VALUE_LENGTH else text[: _VALUE_LENGTH - 1] + "…"
