"""`dmoerm score`: rewards for files of prompts and responses, in a stream: memory does not grow with the files."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..io.paths import model_folder
from ..io.storage import is_url
from .models import load_model
from .options import BatchTokens, Deterministic, Dtype, Engine, JsonFile

if TYPE_CHECKING:
    from ..errors import DataError
    from ..scoring.rows import ModelRows


def command(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="A model's or a run's folder, or a hub name; several are an ensemble."),
    ],
    input: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="JSON Lines or Parquet: a file, a pattern such as 'rows/*.parquet', a URL such as s3://…; "
            "- is standard input, JSON Lines.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="A .jsonl or .parquet file; - is standard output; with --engine ray a folder of parts."
        ),
    ] = "-",
    task: Annotated[
        str | None, typer.Option(help="Score everything as this task; else a row's own, else routed.")
    ] = None,
    format: Annotated[str, typer.Option(help="The rows' format; auto tells it from the first row.")] = "auto",
    ensemble: Annotated[
        Literal["mean", "wco", "uwo"] | None,
        typer.Option(
            help="Several models' reward: their mean (unless given), the worst, or the mean less half the variance."
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Also write the place (best) and text (chosen) of the best response.")
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out rows that cannot be scored and say which."),
    ] = False,
    dtype: Dtype = None,
    deterministic: Deterministic = False,
    batch_tokens: BatchTokens = 8192,
    engine: Engine = "local",
    actors: Annotated[
        int | None, typer.Option(min=1, help="Ray: most models at work; as many as there is room for, unless given.")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="Ray: processors of each.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="Ray: accelerators of each.")] = 0.0,
    shard_rows: Annotated[int, typer.Option(min=1, help="Ray: most rows of a part.")] = 1000,
    json_file: JsonFile = None,
) -> None:
    """Score every response in a file: one output row per input row, in order.

    A row has: id, task (null: the general model scored), route (task → probability), temperature, and with one value
    per response rewards, capabilities, uncertainty and truncated; with --best also best and chosen. An empty response
    has the lowest reward, −20. An output file is written completely or not at all. With --engine ray the output is a
    folder of such files with a manifest; a run that was stopped continues when it is started again.
    """
    from ..errors import ConfigError

    if ensemble and not models[1:]:
        raise ConfigError(f"--ensemble {ensemble}: there is one model; name the others, or leave this out")
    started, how = time.monotonic(), ensemble or "mean"
    options = _Options(
        tuple(models), input, output, task, format, how, best, skip_bad, batch_tokens, dtype, deterministic
    )
    found = _score_on_ray(options, actors, cpus, gpus, shard_rows) if engine == "ray" else _score_here(options)
    if found["left_out"]:
        Console(stderr=True).print(f"{found['left_out']} rows left out")
    if json_file is not None:
        from ..io.paths import write_file

        summary = {"schema": 1, "command": "score", "models": models, "ensemble": how if models[1:] else None}
        summary |= {"input": input, "output": output, **found}
        summary["seconds"] = round(time.monotonic() - started, 3)
        write_file(json_file, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")


@dataclass(frozen=True)
class _Options:
    """The options that both engines share."""

    models: tuple[str, ...]
    input: str
    output: str
    task: str | None
    format: str
    ensemble: str
    best: bool
    skip_bad: bool
    batch_tokens: int
    dtype: str | None
    deterministic: bool

    def model_options(self) -> dict[str, Any]:
        """The arguments of `open_models` beside the folders."""
        names = ("batch_tokens", "task", "ensemble", "dtype", "deterministic")
        return {name: getattr(self, name) for name in names}


def _score_here(options: _Options) -> dict[str, Any]:
    from ..data.readers import read_queries
    from ..io.storage import matching
    from ..scoring.output import open_output
    from ..scoring.rows import Tally, written_rows

    tally, left_out = Tally(), _LeftOut()
    on_bad = left_out.take if options.skip_bad else None
    with open_output(
        options.output, options.best
    ) as write:  # first, so that a wrong name is told before a model is loaded
        scorer = open_models(options.models, **options.model_options())
        files = (read_queries(file, format=options.format, on_bad=on_bad) for file in matching(options.input))
        with _progress() as show:
            for row in written_rows(scorer, itertools.chain.from_iterable(files), on_bad, options.best):
                write([row])
                tally.take(row["task"], len(row["rewards"]))
                show(f"scored {tally.queries} prompts, {tally.responses} responses")
    return tally.figures() | {"left_out": left_out.count}


def open_models(
    folders: Sequence[str], dtype: str | None = None, deterministic: bool = False, **options: Any
) -> ModelRows:
    """Load the models as a `RowScorer`, in this process or in an actor; see `ModelRows` for the options."""
    from ..scoring.rows import ModelRows

    models = [load_model(folder, dtype, deterministic) for folder in folders]
    return ModelRows(models, deterministic=deterministic, **options)


_SHOWN_BAD_ROWS = 10


class _LeftOut:
    """The rows that cannot be scored: said and counted."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, error: DataError | str) -> None:
        """Count a row that is left out; print the reasons of the first ten."""
        self.count += 1
        if self.count > _SHOWN_BAD_ROWS:
            return
        Console(stderr=True).print(f"left out: {error}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that says how far it is, on a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("scoring", total=None)
        yield lambda text: bar.update(shown, description=text)


# --- on Ray --------------------------------------------------------------------------------------------------------


def _score_on_ray(options: _Options, actors: int | None, cpus: float, gpus: float, shard_rows: int) -> dict[str, Any]:
    from ..distributed.scoring import Ended, Job, Pool, score_on_ray
    from ..errors import ConfigError

    if options.output == "-" or PurePosixPath(options.output).suffix in (".jsonl", ".parquet"):
        raise ConfigError(f"--output {options.output}: with --engine ray, name the folder of the parts")
    folders = [_reachable(model_folder(model)) for model in options.models]
    scorer = ", ".join([*map(_named, folders), *([options.ensemble] if folders[1:] else [])])
    scorer += f", task {options.task}" if options.task else ""
    scorer += f", {options.dtype}" if options.dtype else ""
    scorer += ", deterministic" if options.deterministic else ""
    places = _absolute(options.input), _absolute(options.output)
    job = Job(scorer, *places, options.format, options.skip_bad, shard_rows, options.best)
    left_out = _LeftOut()
    with _progress() as show:

        def told(done: int, total: int, ended: Ended) -> None:
            show(f"scored {done} of {total} prompts")
            for reason in ended.left_out:
                left_out.take(reason)

        opened = functools.partial(open_models, folders, **options.model_options())
        found = score_on_ray(job, opened, Pool(actors, cpus, gpus), told)
    return {name: found[name] for name in ("queries", "responses", "tasks", "left_out")}


def _reachable(folder: str) -> str:
    """A folder with its whole path; a hub name as it is."""
    return _absolute(folder) if Path(folder).is_dir() else folder


def _absolute(place: str) -> str:
    """The place as a process in another folder finds it."""
    return place if is_url(place) else str(Path(place).absolute())


def _named(folder: str) -> str:
    """The model's folder, with a digest of what was trained: another model in the same folder is another one."""
    file = Path(folder) / "model.safetensors"
    return f"{folder} {hashlib.sha256(file.read_bytes()).hexdigest()[:16]}" if file.is_file() else folder
