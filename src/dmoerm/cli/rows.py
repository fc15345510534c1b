"""How commands read rows: the options for it, and the bad rows that they skip."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .options import SHOWN_BAD_ROWS, Format

if TYPE_CHECKING:
    from ..errors import DataError
    from ..schema import Group

Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="[FILE:]FIELD=COLUMN,…",
        help="Read fields of the format from columns of other names, as in prompt=question,chosen=best; with FILE: in "
        "that file alone. May be repeated.",
    ),
]
Task = Annotated[str | None, typer.Option(metavar="NAME", help="Task of the rows that have none.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip bad rows and print the reasons.")]


@dataclass(frozen=True)
class RowOptions:
    """How rows become groups."""

    format: Format = "auto"
    map: Map = None
    task: Task = None
    skip_bad: SkipBad = False

    def arguments(self, files: Collection[str] | None = None) -> dict[str, Any]:
        """Return the keyword arguments of `read_groups`. Raise `ConfigError` for an invalid --map.

        Args:
            files: the files that --map may name; None: they are not checked.
        """
        from ..data.columns import parse_columns

        return {"format": self.format, "columns": parse_columns(self.map or (), files), "task": self.task}

    def read(self, files: Collection[str], split: str = "train", others: Collection[str] = ()) -> list[Group]:
        """Return the groups of the files. With --skip-bad, print what is wrong with the bad rows and skip them.

        Args:
            others: more files of the command, which --map may name too.
        """
        from ..data.readers import read_groups

        arguments, skipped, groups = self.arguments((*files, *others)), SkippedRows(), list[Any]()
        for file in files:
            on_error = "collect" if self.skip_bad else "raise"
            reading = read_groups(file, split=split, on_error=on_error, **arguments)
            groups += reading.groups
            for error in reading.bad:
                skipped.add(error)
        skipped.print_count()
        return groups

    def settings(self) -> list[str]:
        """Return the options that are given as overrides of a config's settings."""
        import json

        given = {"map": self.arguments()["columns"], "task": self.task, "skip_bad": self.skip_bad}
        given |= {"format": self.format} if self.format != "auto" else {}
        return [f"data.{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value]


class SkippedRows:
    """Counts the rows that are skipped, and prints the reasons of the first ones."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: DataError | str) -> None:
        """Count a skipped row; print the reason if it is one of the first."""
        self.count += 1
        if self.count <= SHOWN_BAD_ROWS:
            _print(f"skipped: {error}")

    def print_count(self) -> None:
        """Print the number of skipped rows, if there are any."""
        if self.count:
            _print(f"{self.count} rows skipped")


def _print(line: str) -> None:
    Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)
