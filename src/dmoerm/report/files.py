"""Read results files and write report.html from them.

results.json, best_of_n.json, … → by its `kind`, a results model → a section each → the page
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..evaluation.results import ResultModel, read_model
from ..io.paths import write_file
from . import sections  # noqa: F401  (registers the kinds)
from .page import render_page
from .results_kinds import KINDS, file_names, section_of

_HINT = "give a JSON file that `dmoerm train`, `eval`, `compare`, `bon` or `rl` wrote"


class _FileKind(ResultModel):
    kind: str | None = None


def read_measured(path: str | Path) -> ResultModel:
    """Read a results file of any kind.

    Raises:
        DataError: the file does not exist, is not valid JSON, has an unknown kind, or lacks a field of its kind.
    """
    kind = read_model(path, _FileKind, _HINT).kind
    if kind not in KINDS:
        raise DataError("unknown kind of results", file=path, field="kind", value=kind, hint=_HINT)
    return read_model(path, KINDS[kind].model, _HINT)


def report_html(*results: ResultModel) -> str:
    """Return the page: one section for each of the results, in this order. The same results give the same text."""
    shown = [section_of(result) for result in results]
    return render_page(f"dmoerm: {shown[0].title if len(shown) == 1 else 'results'}", shown)


def write_report(path: str | Path, *results: ResultModel) -> None:
    """Write the page, completely or not at all. Raises `CheckpointError` if it cannot be written."""
    write_file(Path(path), report_html(*results))


def write_folder_report(folder: Path) -> Path:
    """Write report.html from the results files in a command's output folder, and return its path.

    Raises:
        CheckpointError: the page cannot be written.
        DataError: see `read_measured`.
    """
    files = [folder / name for name in file_names() if (folder / name).is_file()]
    return write_file_report(files, folder / "report.html")


def write_file_report(files: Sequence[str | Path], path: Path) -> Path:
    """Write a page from these files, in this order, and return its path."""
    write_report(path, *map(read_measured, files))
    return path
