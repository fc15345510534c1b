"""Options that several commands share, and groups of options.

A group is a dataclass whose fields are options. A command that is decorated with `grouped` takes it as one parameter.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperGroup

from ..data.readers import parse_columns, read_groups
from ..errors import DataError
from ..schema import Group


class _Lazy:
    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(f"dmoerm.{self.name}"), attribute)


def lazily(*names: str) -> list[Any]:
    """Return modules of the package that are imported at the first use of one of their names.

    A command's `--help` does not wait for them. Type checkers read the same imports under `TYPE_CHECKING`.
    """
    return [_Lazy(name) for name in names]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per field of each parameter whose type is a dataclass, since Typer knows no groups."""
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    keyword = inspect.Parameter.KEYWORD_ONLY
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not (isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)):
            parameters.append(parameter.replace(kind=keyword))
            continue
        groups[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        for field in fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            parameters.append(inspect.Parameter(field.name, keyword, default=default, annotation=hints[field.name]))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


class RunByDefault(TyperGroup):
    """A group of commands that runs its command `run` if the first argument names no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def note(line: str) -> None:
    """Print a line on the standard error stream."""
    Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)


# --- rows ----------------------------------------------------------------------------------------------------------

SHOWN_BAD_ROWS = 10
"""Bad rows that a command prints; the others are counted."""

Format = Annotated[str, typer.Option(help="Format of the rows; auto detects it from the first row.")]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN,…",
        help="Read fields of the format from columns of other names, as in prompt=question,chosen=best. May be "
        "repeated.",
    ),
]


@dataclass(frozen=True)
class RowOptions:
    """How rows become groups."""

    format: Format = "auto"
    map: Map = None
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Task of the rows that have none.")] = None
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip bad rows and print the reasons.")] = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `read_groups`. Raise `ConfigError` for an invalid --map."""
        return {"format": self.format, "columns": parse_columns(self.map or ()), "task": self.task}

    def read(self, files: Collection[str]) -> list[Group]:
        """Return the groups of the files. With --skip-bad, print what is wrong with the bad rows and skip them."""
        skipped, groups = SkippedRows(), list[Group]()
        for file in files:
            reading = read_groups(file, on_error="collect" if self.skip_bad else "raise", **self.arguments())
            groups += reading.groups
            for error in reading.bad:
                skipped.add(error)
        skipped.print_count(skipped.count)
        return groups

    def settings(self) -> list[str]:
        """Return the options that are given as overrides of a config's settings."""
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
            note(f"skipped: {error}")

    def print_count(self, count: int) -> None:
        """Print how many rows are skipped, if there are any; on Ray, some in an earlier run."""
        if count:
            note(f"{count} rows skipped")


# --- models and results --------------------------------------------------------------------------------------------

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a setting; may be repeated.")
]


def _named(file: Path | None) -> Path | None:
    """Refuse `-`, for which a file of this name would be written: tables are on standard output."""
    if file == Path("-"):
        raise typer.BadParameter("name a file: standard output has the tables")
    return file


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=_named,
        help="Also write the result to this file, as JSON; not to the screen.",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="local: in this process; ray: on the cluster at $RAY_ADDRESS, or on a new one on this machine."),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Folder or hub name of the model's backbone, if it is not where the model names it; or $DMOERM_BACKBONE.",
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="Precision of the computation. Default: as saved.")
]
Quantization = Annotated[
    Literal["none", "8bit", "4bit"],
    typer.Option(help="Hold the frozen layers in 8 or 4 bits; needs the extra quantization."),
]
Deterministic = Annotated[
    bool,
    typer.Option("--deterministic", help="Score each response in its own pass, whatever else is in the batch; slower."),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum tokens of a pass, counted once per expert; default: 8192, on a GPU up to 65,536 by its memory.",
    ),
]
