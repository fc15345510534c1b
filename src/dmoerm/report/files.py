"""report.html: one self-contained page from results files, for people. It loads nothing from anywhere.

results.json, best_of_n.json, … → by its `kind`, what it holds → a section each → `page`

To show another kind of results: its pydantic model, a function from it to a `Section`, and an entry in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..evaluation.experiment_results import BestOfNResults, Comparison, PolicyResults
from ..evaluation.results import Part, Results, read_part
from ..io.paths import write_file
from .best_of_n import best_of_n_section
from .comparison import comparison_section
from .page import Section, page
from .policies import policies_section
from .run import run_section


@dataclass(frozen=True)
class Kind:
    """A kind of results: what a file of it holds, how it is shown, and its usual name in a command's folder."""

    model: type[Part]
    section: Callable[[Any], Section]
    file: str


KINDS: dict[str | None, Kind] = {
    None: Kind(Results, run_section, "results.json"),
    "comparison": Kind(Comparison, comparison_section, "results.json"),
    "best_of_n": Kind(BestOfNResults, best_of_n_section, "best_of_n.json"),
    "rl": Kind(PolicyResults, policies_section, "rl.json"),
}
"""The file's `kind` → what it is; a run's results.json has none."""
_REMEDY = "give a JSON file that `dmoerm train`, `eval`, `compare`, `bon` or `rl` wrote"


class _Kind(Part):
    kind: str | None = None


def read_measured(path: str | Path) -> Part:
    """Reads a results file of any kind.

    Raises:
        DataError: there is no such file, it is no JSON, of no known kind, or not what its kind's command writes.
    """
    kind = read_part(path, _Kind, _REMEDY).kind
    if kind not in KINDS:
        raise DataError("there is no section for such results", file=path, field="kind", value=kind, hint=_REMEDY)
    return read_part(path, KINDS[kind].model, _REMEDY)


def report_html(*found: Part) -> str:
    """The page: a section each, in this order. The same results give the same text."""
    if len(found) == 1:
        return page(f"dmoerm: {_section(found[0]).title}", [_section(found[0])])
    return page("dmoerm: results", [_section(one) for one in found])


def _section(found: Part) -> Section:
    (kind,) = (kind for kind in KINDS.values() if isinstance(found, kind.model))
    return kind.section(found)


def write_report(path: str | Path, *found: Part) -> None:
    """Writes the page, completely or not at all. Raises `ArtefactError` where it cannot be written."""
    write_file(Path(path), report_html(*found))


def write_folder_report(folder: Path) -> Path:
    """Writes report.html from the results files that a command's folder has, and returns its place.

    Raises:
        ArtefactError: it cannot be written.
        DataError: see `read_measured`.
    """
    names = dict.fromkeys(kind.file for kind in KINDS.values())
    return write_file_report([folder / name for name in names if (folder / name).is_file()], folder / "report.html")


def write_file_report(files: Sequence[str | Path], place: Path) -> Path:
    """The same from these files, in this order."""
    write_report(place, *map(read_measured, files))
    return place
