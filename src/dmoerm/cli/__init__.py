"""The command line `dmoerm`; `dmoerm --help` lists the commands.

`--help` and completion answer quickly: a command's module is imported when the command is chosen, and what the command
uses when it runs (`options.lazily`). Results are printed to the standard output, progress and errors to the standard
error stream.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import os
import re
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import DmoermError

COMMANDS = {
    "init": ("init.command", "Propose tasks, a taxonomy and a recipe for data, and write a config."),
    "train": ("run.train", "Train a model and evaluate it on held-out prompts."),
    "eval": ("run.eval_", "Measure a model on held-out prompts, or on labeled data."),
    "add": ("grow.add", "Add a task or a capability to a trained model."),
    "retrain": ("grow.retrain", "Train one capability's expert again."),
    "remove": ("grow.remove", "Remove tasks or a capability."),
    "merge": ("grow.merge", "Join tasks that were trained apart on the same trunk."),
    "export": ("grow.export", "Write some tasks alone, a model with its backbone, or a standard classifier."),
    "push": ("grow.push", "Upload a model to the Hugging Face hub."),
    "score": ("score.command", "Score every response in a file."),
    "serve": ("serve.command", "Serve a model over HTTP."),
    "compare": ("run.compare", "Train and measure simpler models on the same prompts."),
    "demo": ("run.demo", "Train, evaluate and try a small model in minutes."),
    "label": ("label.app", "Create capability labels with an LLM judge, and measure their quality."),
    "data": ("data.app", "Check preference data, and find doubtful labels."),
    "models": ("models.app", "Inspect backbones."),
}
"""Command → where it is (`module.function`, or `module.app` for a group of commands), and its line in `--help`."""

_INTERRUPTED, _PIPE_CLOSED = 130, 141
_RESUMABLE = {"train", "add", "retrain", "compare", "demo"}
_SHORTER_TRAINING = (
    "set base to frozen or lora, gradient_checkpointing to true or offload, a higher backbone.branch_layer, a lower "
    "encoding.max_length, or backbone.quantization to 4bit; `dmoerm models check` counts the memory"
)
_SHORTER_PASSES = "set a lower --batch-tokens, or --dtype bfloat16"
_LESS_MEMORY = dict.fromkeys(sorted(_RESUMABLE), _SHORTER_TRAINING)
_LESS_MEMORY |= {"score": _SHORTER_PASSES, "serve": _SHORTER_PASSES, "eval": "set a lower --batch-tokens"}
_EXTRAS = {
    "train": {"accelerate", "datasets", "matplotlib", "pyarrow", "scipy"},
    "serve": {"fastapi", "prometheus_client", "pythonjsonlogger", "starlette", "uvicorn"},
    "label": {"openai", "pyarrow"},
}
"""Extra of dmoerm → the packages that it installs, as they are imported."""
_SYSTEM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}


class _Commands(TyperGroup):
    """Import a command when it is chosen, and print an expected error as one line with exit code 1.

    Any other exception keeps its traceback. `commands` has only names and help texts.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name and listed else None, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if ctx.invoked_subcommand in _RESUMABLE:
                Console(stderr=True).print("interrupted; the same command resumes", highlight=False)
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output has exited, as `head` does
            with contextlib.suppress(OSError):  # otherwise the interpreter's last flush raises again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_PIPE_CLOSED) from None
        except (DmoermError, OSError) as error:
            if not isinstance(error, DmoermError) and error.errno not in _SYSTEM_ERRORS:
                raise
            _fail(str(error))
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            extras = [ctx.invoked_subcommand or "", *_EXTRAS]  # several have pyarrow
            extra = next((extra for extra in extras if package in _EXTRAS.get(extra, ())), None)
            if extra is None:
                raise
            where = f"pip install '.[{extra}]' in dmoerm's folder"
            _fail(f"{ctx.invoked_subcommand} needs the package {package}, which is not installed: {where}")
        except RuntimeError as error:
            if (torch := sys.modules.get("torch")) is None or not isinstance(error, torch.OutOfMemoryError):
                raise
            _fail(_out_of_memory(ctx.invoked_subcommand, str(error)))


def _fail(message: str) -> NoReturn:
    """Print one line and exit with code 1."""
    Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", soft_wrap=True, highlight=False)
    raise typer.Exit(1) from None


def _out_of_memory(command: str | None, reason: str) -> str:
    """Return the line for a device without free memory: what was requested, and the setting that helps."""
    requested = re.search(r"Tried to allocate [\d.]+ \w+", reason)
    detail = f" ({requested[0][0].lower()}{requested[0][1:]})" if requested else ""
    hint = _LESS_MEMORY.get(command or "", "use a smaller backbone, or a device with more memory")
    return f"{command}: the device is out of memory{detail}; {hint}"


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"dmoerm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate and use double-layer mixture-of-experts reward models."""


@functools.cache
def load_command(name: str) -> Any:
    """Import a command of `COMMANDS`, and return it with its options, or with its own commands."""
    module, attribute = COMMANDS[name][0].split(".")
    target = getattr(importlib.import_module(f".{module}", __name__), attribute)
    if isinstance(target, typer.Typer):
        command = typer.main.get_group(target)
    else:
        alone = typer.Typer(add_completion=False)
        alone.command()(target)
        command = typer.main.get_command(alone)
    command.name = name
    return command


def main() -> None:
    """Run the `dmoerm` command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before the import, which prints
    app(prog_name="dmoerm")
