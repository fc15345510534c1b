"""Options that several commands share, so that they are named and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a setting; may be given several times.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the machine-readable result to this file.")
]
BatchTokens = Annotated[int, typer.Option(min=1, help="Most tokens of one pass; a token counts once for each expert.")]
