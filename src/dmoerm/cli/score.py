"""`dmoerm score`: score one prompt, or files of prompts and responses as a stream, in constant memory."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..data.readers import parse_columns, read_queries
from ..errors import ConfigError
from ..io.paths import model_folder, weights_digest, write_file
from ..io.storage import is_url, matching
from .models import follows, load_model
from .options import (
    Backbone,
    BatchTokens,
    Deterministic,
    Dtype,
    Engine,
    Format,
    JsonFile,
    Map,
    Quantization,
    SkippedRows,
    grouped,
    lazily,
)
from .tables import print_scores, screen

if TYPE_CHECKING:
    from ..distributed import batch_scoring
    from ..evaluation import scoring_files
else:
    batch_scoring, scoring_files = lazily("distributed.batch_scoring", "evaluation.scoring_files")


@dataclass(frozen=True)
class ScoreArguments:
    """What is scored, and how."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's or a run's folder, or a hub name.")]
    input: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines, CSV, TSV or Parquet: a file, a pattern such as 'rows/*.parquet', or a URL such as "
            "s3://…; - is standard input, JSON Lines.",
        ),
    ] = None
    prompt: Annotated[str | None, typer.Option(help="In place of --input: score the responses to this prompt.")] = None
    response: Annotated[list[str] | None, typer.Option(help="With --prompt: a response; may be repeated.")] = None
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
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CAPABILITY=NUMBER",
            help="Give a capability another weight in the rewards, from -10 to 10 (1: as learned); may be repeated.",
        ),
    ] = None
    format: Format = "auto"
    map: Map = None
    best: Annotated[
        bool, typer.Option("--best", help="Add the index (best) and the text (chosen) of the best response.")
    ] = False
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip rows that cannot be scored and print the reasons.")
    ] = False
    backbone: Backbone = None
    dtype: Dtype = None
    quantization: Quantization = "none"
    deterministic: Deterministic = False
    batch_tokens: BatchTokens = None
    gpus: Annotated[float, typer.Option(min=0, help="Ray: GPUs per actor; there are as many actors as fit.")] = 0.0

    @property
    def file(self) -> str:
        """The rows to score. Raise `ConfigError` without --input."""
        if self.input is None:
            raise ConfigError("nothing to score: give --input FILE, or --prompt TEXT and --response TEXT once or more")
        return self.input

    @property
    def weights(self) -> dict[str, float] | None:
        """Capability → weight. Raise `ConfigError` for an invalid --weight."""
        weights: dict[str, float] = {}
        for option in self.weight or ():
            name, _, number = option.rpartition("=")
            try:
                weights[name] = float(number)
            except ValueError:
                name = ""
            if not name:
                message = f"--weight: {option!r} is invalid; write CAPABILITY=NUMBER, for example empathy=2"
                raise ConfigError(message) from None
        return weights or None

    @property
    def opening(self) -> dict[str, Any]:
        """The keyword arguments of `open_model`."""
        names = ("batch_tokens", "task", "dtype", "quantization", "deterministic", "weights", "best", "backbone")
        return {name: getattr(self, name) for name in names}


@grouped
def command(options: ScoreArguments, engine: Engine = "local", json_file: JsonFile = None) -> None:
    """Score the responses to one prompt (--prompt, --response), or every response in a file (--input).

    One prompt: a table, and with --json its scores. A file: one output row per input row, in order. A row has: id, line
    (of the input), task (given or most probable; null: the general model scored), route (task → probability),
    temperature, and with one value per response rewards, capabilities, uncertainty, truncated and contributions (the
    parts of which a reward is the sum); with --best also best and chosen. An empty response has the lowest reward, −20.
    --weight changes rewards and contributions; a weight has no effect on rows that the general model or another task's
    model scores. An output file is written completely or not at all. With --engine ray the output is a folder of such
    files with a manifest; a run that was stopped continues when it is started again.
    """
    if options.prompt is not None or options.response:
        _score_prompt(options, engine, json_file)
        return
    started, skipped = time.monotonic(), SkippedRows()
    result = _score_on_ray(options, skipped) if engine == "ray" else _score_here(options, skipped)
    skipped.print_count(result["left_out"])
    if json_file is not None:
        summary = {"schema": 1, "command": "score", "model": options.model, "weights": options.weights}
        summary |= {"input": options.input, "output": options.output, **result}
        summary["seconds"] = round(time.monotonic() - started, 3)
        write_file(json_file, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")


_FOR_FILES = ("input", "output", "format", "map", "best", "skip_bad", "gpus")


def _score_prompt(options: ScoreArguments, engine: str, json_file: Path | None) -> None:
    """Print a table of the scores of the responses to one prompt."""
    defaults = {field.name: field.default for field in fields(ScoreArguments)}
    others = [name for name in _FOR_FILES if getattr(options, name) != defaults[name]]
    if others or engine != "local":
        name = others[0].replace("_", "-") if others else "engine"
        raise ConfigError(f"--{name} is for files of prompts; leave it out, or give --input in place of --prompt")
    if options.prompt is None or not options.response:
        raise ConfigError("--prompt and --response belong together; give the prompt once, and each response")
    model = load_model(
        options.model, options.dtype, options.deterministic, options.quantization, backbone=options.backbone
    )
    weights, tokens = options.weights, options.batch_tokens
    scores = model.score(options.prompt, options.response, options.task, weights=weights, batch_tokens=tokens)
    print_scores(screen(), options.response, scores)
    if json_file is not None:
        summary = {
            "schema": 1,
            "command": "score",
            "model": options.model,
            "weights": weights,
            "prompt": options.prompt,
        }
        summary["scores"] = [{"response": r} | asdict(score) for r, score in zip(options.response, scores, strict=True)]
        write_file(json_file, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")


def open_model(
    folder: str,
    dtype: str | None = None,
    deterministic: bool = False,
    quantization: str = "none",
    backbone: str | None = None,
    **options: Any,
) -> scoring_files.RowScorer:
    """Load a model that scores rows, in this process or in an actor; see `RowScorer` for the options."""
    model = load_model(folder, dtype, deterministic, quantization, divide=True, backbone=backbone)
    return scoring_files.RowScorer(model, deterministic=deterministic, **options)


def _score_here(options: ScoreArguments, skipped: SkippedRows) -> dict[str, Any]:
    if follows():  # process 0 reads and writes
        open_model(options.model, **options.opening)
        raise typer.Exit
    counts = scoring_files.ScoreCounts()
    on_bad = skipped.add if options.skip_bad else None
    # The output first, to report a wrong name before a model is loaded.
    with scoring_files.open_output(options.output, options.best) as write:
        scorer = open_model(options.model, **options.opening)
        reading: Any = {"format": options.format, "columns": parse_columns(options.map or ()), "on_bad": on_bad}
        files = (read_queries(file, **reading) for file in matching(options.file))
        with _progress() as show:
            for row in scorer.rows(itertools.chain.from_iterable(files), on_bad):
                write([row])
                counts.add(row["task"], len(row["rewards"]))
                show(f"scored {counts.queries} prompts, {counts.responses} responses")
    return counts.model_dump() | {"left_out": skipped.count}


def _score_on_ray(options: ScoreArguments, skipped: SkippedRows) -> dict[str, Any]:
    def absolute(path: str) -> str:
        """Return the path for processes in other folders."""
        return path if is_url(path) else str(Path(path).absolute())

    if options.output == "-" or PurePosixPath(options.output).suffix in (".jsonl", ".parquet"):
        raise ConfigError(f"--output {options.output}: with --engine ray, give a folder for the parts")
    folder, backbone = model_folder(options.model), options.backbone
    folder = absolute(folder) if Path(folder).is_dir() else folder  # otherwise a hub name
    backbone = absolute(backbone) if backbone and Path(backbone).is_dir() else backbone
    settings = {name: value for name, value in options.opening.items() if value and name != "backbone"}
    job = batch_scoring.ScoringJob(
        scorer=f"{folder} {weights_digest(folder)} {json.dumps(settings, sort_keys=True)}",
        input=absolute(options.file),
        output=absolute(options.output),
        format=options.format,
        skip_bad=options.skip_bad,
        best=options.best,
        columns=parse_columns(options.map or ()),
    )
    with _progress() as show:

        def on_shard(done: int, total: int, result: batch_scoring.ShardResult) -> None:
            show(f"scored {done} of {total} prompts")
            for reason in result.left_out:
                skipped.add(reason)

        open_scorer = functools.partial(open_model, folder, **options.opening | {"backbone": backbone})
        manifest = batch_scoring.score_on_ray(job, open_scorer, gpus=options.gpus, on_shard=on_shard)
    return {name: manifest[name] for name in ("queries", "responses", "tasks", "left_out")}


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show a progress line on a terminal; yields a function that sets its text."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("scoring", total=None)
        yield lambda text: bar.update(line, description=text)
