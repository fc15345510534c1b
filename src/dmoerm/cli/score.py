"""`dmoerm score`: score files of prompts and responses as a stream, in memory that does not grow with the files."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..data.columns import parse_columns
from ..data.readers import read_queries
from ..distributed.batch_scoring import ActorPool, ScoringJob, ShardResult, score_on_ray
from ..errors import ConfigError
from ..io.paths import model_folder, weights_digest, write_file
from ..io.storage import is_url, matching
from ..scoring.output import open_output
from ..scoring.score_rows import ModelRows, ScoreCounts, written_rows
from .models import follows, load_model
from .options import (
    BatchTokens,
    Deterministic,
    Dtype,
    Engine,
    Format,
    JsonFile,
    Map,
    Quantization,
    SkippedRows,
    WeightOptions,
    grouped,
    note,
    parse_weights,
)


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored, and how; the options that both engines share."""

    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="A model's or a run's folder, or a hub name; several form an ensemble."),
    ]
    input: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="JSON Lines, CSV, TSV or Parquet: a file, a pattern such as 'rows/*.parquet', or a URL such as "
            "s3://…; - is standard input, JSON Lines.",
        ),
    ]
    output: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="A .jsonl or .parquet file; - is standard output; with --engine ray a folder for the parts.",
        ),
    ] = "-"
    task: Annotated[
        str | None,
        typer.Option(help="Score all rows as this task; otherwise as the row's own task, or as the router decides."),
    ] = None
    weight: WeightOptions = None
    risk: Annotated[
        float,
        typer.Option(metavar="NUMBER", help="Lower each reward by NUMBER times its uncertainty, after the weights."),
    ] = 0.0
    format: Format = "auto"
    map: Map = None
    ensemble: Annotated[
        Literal["mean", "wco", "uwo"] | None,
        typer.Option(
            help="How several models are combined: mean (default), worst (wco), or mean minus half the variance (uwo)."
        ),
    ] = None
    best: Annotated[
        bool, typer.Option("--best", help="Add the index (best) and the text (chosen) of the best response.")
    ] = False
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Skip rows that cannot be scored and print the reasons."),
    ] = False
    dtype: Dtype = None
    quantization: Quantization = "none"
    deterministic: Deterministic = False
    batch_tokens: BatchTokens = None

    @property
    def columns(self) -> dict[str, Any]:
        """The fields that are read from columns of other names."""
        return parse_columns(self.map or (), matching(self.input)) if self.map else {}

    @property
    def method(self) -> str:
        """How several models are combined."""
        return self.ensemble or "mean"

    @property
    def weights(self) -> dict[str, float] | None:
        """The weights of capabilities; None: all are 1."""
        return parse_weights(self.weight) if self.weight else None

    def model_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `open_models`."""
        names = ("batch_tokens", "task", "dtype", "quantization", "deterministic", "weights", "risk")
        return {name: getattr(self, name) for name in names} | {"ensemble": self.method}


@dataclass(frozen=True)
class RayOptions:
    """How the work is divided on a Ray cluster."""

    actors: Annotated[
        int | None, typer.Option(min=1, help="Ray: maximum number of actors; by default as many as fit in the cluster.")
    ] = None
    cpus: Annotated[float, typer.Option(min=0, help="Ray: CPUs per actor.")] = 1.0
    gpus: Annotated[float, typer.Option(min=0, help="Ray: GPUs per actor.")] = 0.0
    shard_rows: Annotated[int, typer.Option(min=1, help="Ray: maximum rows of a part.")] = 1000


@grouped
def command(options: ScoreOptions, ray: RayOptions, engine: Engine = "local", json_file: JsonFile = None) -> None:
    """Score every response in a file: one output row per input row, in order.

    A row has: id, line (of the input), task (given or most probable; null: the general model scored), route (task →
    probability), temperature, and with one value per response rewards, capabilities, uncertainty and truncated;
    with --best also best and chosen. An empty response has the lowest reward, −20. --weight and --risk change the
    rewards only; a weight has no effect on rows that the general model or another task's model scores. An output
    file is written completely or not at all. With --engine ray the output is a folder of such files with a
    manifest; a run that was stopped continues when it is started again.
    """
    if options.ensemble and not options.models[1:]:
        raise ConfigError(f"--ensemble {options.ensemble}: needs several models, but only one is given")
    started = time.monotonic()
    result = _score_on_ray(options, ray) if engine == "ray" else _score_here(options)
    if result["left_out"]:
        note(f"{result['left_out']} rows skipped")
    if json_file is not None:
        ensemble = options.method if options.models[1:] else None
        summary = {"schema": 1, "command": "score", "models": options.models, "ensemble": ensemble}
        summary |= {"weights": options.weights, "risk": options.risk}
        summary |= {"input": options.input, "output": options.output, **result}
        summary["seconds"] = round(time.monotonic() - started, 3)
        write_file(json_file, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")


def _score_here(options: ScoreOptions) -> dict[str, Any]:
    if follows():  # process 0 reads and writes
        if not options.models[1:]:
            open_models(options.models, **options.model_options())
        raise typer.Exit
    counts, skipped = ScoreCounts(), SkippedRows()
    on_bad = skipped.add if options.skip_bad else None
    with open_output(options.output, options.best) as write:  # first, to report a wrong name before a model is loaded
        scorer = open_models(options.models, **options.model_options())
        reading: Any = {"format": options.format, "columns": options.columns, "on_bad": on_bad}
        files = (read_queries(file, **reading) for file in matching(options.input))
        with _progress() as show:
            for row in written_rows(scorer, itertools.chain.from_iterable(files), on_bad, options.best):
                write([row])
                counts.add(row["task"], len(row["rewards"]))
                show(f"scored {counts.queries} prompts, {counts.responses} responses")
    return counts.summary() | {"left_out": skipped.count}


def open_models(
    folders: Sequence[str],
    dtype: str | None = None,
    deterministic: bool = False,
    quantization: str = "none",
    **options: Any,
) -> ModelRows:
    """Load the models as a `RowScorer`, in this process or in an actor; see `ModelRows` for the options."""
    divide = not folders[1:]  # processes follow the passes of one model
    models = [load_model(folder, dtype, deterministic, quantization, divide=divide) for folder in folders]
    return ModelRows(models, deterministic=deterministic, **options)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show a progress line on a terminal; yields a function that sets its text."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("scoring", total=None)
        yield lambda text: bar.update(line, description=text)


# --- on Ray --------------------------------------------------------------------------------------------------------


def _score_on_ray(options: ScoreOptions, ray: RayOptions) -> dict[str, Any]:
    if options.output == "-" or PurePosixPath(options.output).suffix in (".jsonl", ".parquet"):
        raise ConfigError(f"--output {options.output}: with --engine ray, give a folder for the parts")
    folders = [_absolute_folder(model_folder(model)) for model in options.models]
    paths = _absolute(options.input), _absolute(options.output)
    job = ScoringJob(
        _description(options, folders),
        *paths,
        options.format,
        options.skip_bad,
        ray.shard_rows,
        options.best,
        options.columns,
    )
    skipped = SkippedRows()
    with _progress() as show:

        def on_shard(done: int, total: int, result: ShardResult) -> None:
            show(f"scored {done} of {total} prompts")
            for reason in result.left_out:
                skipped.add(reason)

        open_scorer = functools.partial(open_models, folders, **options.model_options())
        manifest = score_on_ray(job, open_scorer, ActorPool(ray.actors, ray.cpus, ray.gpus), on_shard)
    return {name: manifest[name] for name in ("queries", "responses", "tasks", "left_out")}


def _description(options: ScoreOptions, folders: Sequence[str]) -> str:
    """Return the scorer's description in the plan: a run that continues must have the same."""
    parts = [
        *(f"{folder} {weights_digest(folder)}".strip() for folder in folders),
        *([options.method] if folders[1:] else []),
    ]
    parts += [f"task {options.task}"] if options.task else []
    parts += [f"weight {name}={weight}" for name, weight in sorted((options.weights or {}).items())]
    parts += [f"risk {options.risk}"] if options.risk else []
    parts += [options.dtype] if options.dtype else []
    parts += [options.quantization] if options.quantization != "none" else []
    parts += ["deterministic"] if options.deterministic else []
    return ", ".join(parts)


def _absolute_folder(folder: str) -> str:
    """Return the absolute path of a folder; a hub name unchanged."""
    return _absolute(folder) if Path(folder).is_dir() else folder


def _absolute(path: str) -> str:
    """Return the absolute path, for processes in other folders; a URL unchanged."""
    return path if is_url(path) else str(Path(path).absolute())
