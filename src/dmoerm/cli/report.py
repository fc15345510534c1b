"""`dmoerm report`: a page from results files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS.json...", help="Files written by train, eval, compare, bon or rl."),
    ],
    output: Annotated[Path, typer.Option(help="Path of the page.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page with a section for each results file."""
    from ..report import write_file_report
    from .tables import screen

    screen().print(f"report: {write_file_report(files, output)}", soft_wrap=True)
