"""Options that several commands share, and groups of options.

A group is a dataclass whose fields are options. A command that is decorated with `grouped` takes it as one parameter.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from typer.core import TyperGroup


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per field of each parameter whose type is a dataclass, since Typer knows no groups."""
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += _fields_as_parameters(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _fields_as_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


class RunByDefault(TyperGroup):
    """A group of commands that runs its command `run` if the first argument names no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


SHOWN_BAD_ROWS = 10
"""Bad rows that a command prints; the others are counted."""

Format = Annotated[str, typer.Option(help="Format of the rows; auto detects it from the first row.")]


WeightOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="CAPABILITY=NUMBER",
        help="Give a capability another weight in the rewards, from -10 to 10; may be repeated. Default: 1 for all.",
    ),
]


def parse_weights(options: Sequence[str]) -> dict[str, float]:
    """Parse the values of --weight. Raise `ConfigError` for an invalid one."""
    from ..errors import ConfigError

    weights: dict[str, float] = {}
    for option in options:
        name, _, number = option.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            message = f"--weight: {option!r} is invalid; write CAPABILITY=NUMBER, for example empathy=2"
            raise ConfigError(message) from None
    return weights


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
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="Precision of the computation. Default: as saved.")
]
Quantization = Annotated[
    Literal["none", "8bit", "4bit"],
    typer.Option(help="Hold the frozen layers in 8 or 4 bits; needs the extra quantization."),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Score each response in its own pass, whatever else is in the batch; slower.",
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum tokens of a pass, counted once per expert; default: 8192, on a GPU up to 65,536 by its memory.",
    ),
]

IncludeTrained = Annotated[
    bool,
    typer.Option("--include-trained", help="Keep prompts that a model was trained on."),
]
