"""report.html, one self-contained page from results, and the model card.

verdict.py      the first screen, in words
sections.py     what the page shows below it, of a run and of a comparison
page.py         the view data and its rendering by templates/
plots.py        intervals as SVG
card.py         README.md of a checkpoint
"""

from __future__ import annotations

from pathlib import Path

from ..evaluation.results import Comparison, Results
from ..io.paths import write_file
from .card import write_card
from .page import render_page
from .sections import measurements
from .verdict import findings, headline, origin

__all__ = ["report_html", "write_card", "write_report"]


def report_html(results: Results | Comparison) -> str:
    """Return the page. The same results give the same text."""
    return render_page(origin(results), headline(results), findings(results), measurements(results))


def write_report(path: str | Path, results: Results | Comparison) -> None:
    """Write the page, completely or not at all. Raises `CheckpointError` if it cannot be written."""
    write_file(Path(path), report_html(results))
