"""`dmoerm report`: results files as one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS.json...", help="What train, eval, compare, bon or rl wrote; one or more."),
    ],
    output: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
) -> None:
    """Write results as one self-contained HTML page, a section a file. It loads nothing from anywhere."""
    from ..report import write_file_report
    from .tables import screen

    screen().print(f"report: {write_file_report(files, output)}", soft_wrap=True)
