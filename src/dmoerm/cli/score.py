"""`dmoerm score`: rewards for a file of prompts and responses, in a stream: memory does not grow with the file."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .models import load_model
from .options import BatchTokens, JsonFile

if TYPE_CHECKING:
    from ..errors import DataError
    from ..model import DMoERM
    from ..schema import Query
    from ..scores import Score


def command(
    model: Annotated[str, typer.Argument(help="A model's or a run's folder, or a hub name.")],
    input: Annotated[str, typer.Option(metavar="FILE", help="JSON Lines or Parquet; - is standard input, JSON Lines.")],
    output: Annotated[str, typer.Option(metavar="FILE", help="A .jsonl or .parquet file; - is standard output.")] = "-",
    task: Annotated[
        str | None, typer.Option(help="Score everything as this task; else a row's own, else routed.")
    ] = None,
    format: Annotated[str, typer.Option(help="The rows' format; auto tells it from the first row.")] = "auto",
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out rows that cannot be scored and say which."),
    ] = False,
    batch_tokens: BatchTokens = 8192,
    json_file: JsonFile = None,
) -> None:
    """Score every response of a file: one output row an input row, in order.

    A row has: id, task (null: the general model scored), route (task → probability), rewards, capabilities, uncertainty
    (each with one number a response) and temperature. An output file is written completely or not at all.
    """
    from ..data.readers import read_queries
    from .rows import open_output

    started, left_out = time.monotonic(), _LeftOut()
    with open_output(output) as write:  # first, so that a wrong name is told before the model is loaded
        rm = load_model(model)
        if task is not None:
            rm.inner(task)
        queries = read_queries(input, format=format, on_bad=left_out.take if skip_bad else None)
        if skip_bad:
            queries = left_out.scorable(rm, queries)
        if task is not None:
            queries = (query.model_copy(update={"task": task}) for query in queries)
        tally = _score(rm, queries, write, batch_tokens)
    tally["left_out"] = left_out.count
    if left_out.count:
        Console(stderr=True).print(f"{left_out.count} rows left out")
    if json_file is not None:
        from ..paths import write_file

        summary = {"schema": 1, "command": "score", "model": model, "input": input, "output": output, **tally}
        summary["seconds"] = round(time.monotonic() - started, 3)
        write_file(json_file, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")


class _LeftOut:
    """The rows that cannot be scored: said, counted, and passed over."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, error: DataError) -> None:
        """Says why a row is left out."""
        self.count += 1
        Console(stderr=True).print(f"left out: {error}", soft_wrap=True, highlight=False, markup=False)

    def scorable(self, model: DMoERM, queries: Iterable[Query]) -> Iterator[Query]:
        """Those that the model can take: of a known task, no longer than it may be."""
        from ..errors import DataError

        for query in queries:
            try:
                if query.task is not None:
                    model.inner(query.task, f"query {query.id}")
                model.encoder.encode(query)
            except DataError as error:
                self.take(error)
            else:
                yield query


def _score(model: DMoERM, queries: Iterable[Query], write: Any, batch_tokens: int) -> dict[str, Any]:
    tasks: Counter[str] = Counter()
    responses = 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("scoring", total=None)
        for query, scores in model.score_stream(queries, batch_tokens):
            write([_row(query, scores)])
            tasks[scores[0].task or "(general model)"] += 1
            responses += len(scores)
            bar.update(shown, description=f"scored {sum(tasks.values())} prompts, {responses} responses")
    return {"queries": sum(tasks.values()), "responses": responses, "tasks": dict(sorted(tasks.items()))}


def _row(query: Query, scores: list[Score]) -> dict[str, Any]:
    first = scores[0]
    return {
        "id": query.id,
        "task": first.task,
        "route": first.route,
        "rewards": [score.reward for score in scores],
        "capabilities": {name: [score.capabilities[name] for score in scores] for name in first.capabilities},
        "uncertainty": None if first.uncertainty is None else [score.uncertainty for score in scores],
        "temperature": first.temperature,
    }
