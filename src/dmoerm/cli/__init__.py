"""The command line `dmoerm`, one module per command; `dmoerm --help` lists them.

Torch and transformers are imported inside the commands, so that `--help` answers quickly. Results are printed to the
standard output, progress and errors to the standard error stream.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from .. import __version__
from ..errors import DmoermError
from . import (
    compare,
    config,
    data,
    demo,
    eval,
    grow,
    init,
    label,
    models,
    report,
    score,
    serve,
    train,
)

_INTERRUPTED, _PIPE_CLOSED = 130, 141
_RESUMABLE = {"train", "add", "retrain", "compare", "demo"}
_SHORTER_TRAINING = (
    "set base to frozen or lora, gradient_checkpointing to true or offload, a higher backbone.branch_layer, a lower "
    "encoding.max_length or experts_per_step, or backbone.quantization to 4bit; `dmoerm models check` counts the memory"
)
_SHORTER_PASSES = "set a lower --batch-tokens, or --dtype bfloat16"
_LESS_MEMORY = dict.fromkeys(sorted(_RESUMABLE), _SHORTER_TRAINING)
_LESS_MEMORY |= {"score": _SHORTER_PASSES, "serve": _SHORTER_PASSES, "eval": "set a lower --batch-tokens"}
_SYSTEM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}


class _Commands(TyperGroup):
    """Print an expected error as one line and exit with code 1; any other exception keeps its traceback."""

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


app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(label.app, name="label")
app.command("init")(init.command)
app.add_typer(models.app, name="models")
app.command("train")(train.command)
app.command("eval")(eval.command)
app.command("add")(grow.add)
app.command("retrain")(grow.retrain)
app.command("remove")(grow.remove)
app.command("export")(grow.export)
app.command("merge")(grow.merge)
app.command("score")(score.command)
app.command("serve")(serve.command)
app.command("compare")(compare.command)
app.command("report")(report.command)
app.command("push")(models.push)
app.command("demo")(demo.command)


def main() -> None:
    """Run the `dmoerm` command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before the import, which prints
    app(prog_name="dmoerm")
