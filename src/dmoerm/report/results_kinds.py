"""The kinds of results files that the page can show. Each module in `sections/` registers one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..evaluation.results import ResultModel
from .view import Section

Results = TypeVar("Results", bound=ResultModel)


@dataclass(frozen=True)
class ResultsKind:
    """What a results file contains, the function that makes its section, and its usual file name."""

    model: type[ResultModel]
    section: Callable[[Any], Section]
    file: str


KINDS: dict[str | None, ResultsKind] = {}
"""The file's `kind` → what it contains; None: a file without a `kind`, as `train` and `eval` write it."""


def shows(model: type[Results], file: str) -> Callable[[Callable[[Results], Section]], Callable[[Results], Section]]:
    """Register the decorated function: it makes the section of results of this model.

    Args:
        model: the file's contents; the default of its field `kind`, if there is one, identifies the file.
        file: the file's usual name in a command's output folder.
    """
    field = model.model_fields.get("kind")

    def register(section: Callable[[Results], Section]) -> Callable[[Results], Section]:
        KINDS[field.default if field else None] = ResultsKind(model, section, file)
        return section

    return register


def file_names() -> list[str]:
    """Return the usual names of results files, results.json first."""
    return sorted({kind.file for kind in KINDS.values()}, key=lambda name: (name != "results.json", name))


def section_of(results: ResultModel) -> Section:
    """Make the section of these results."""
    (kind,) = (kind for kind in KINDS.values() if type(results) is kind.model)
    return kind.section(results)
