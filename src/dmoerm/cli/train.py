"""`dmoerm train`: train from a config; write the model, its results, the report and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from ..evaluation.results import routing_notes
from .models import quieten
from .options import Engine, JsonFile, Overrides, RowOptions, grouped

if TYPE_CHECKING:
    from ..config import Config
    from ..evaluation import Results
    from ..model import DMoERM
    from ..training import Run


@grouped
def command(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config such as human or fast.")],
    rows: RowOptions,
    overrides: Overrides = None,
    engine: Engine = "local",
    json_file: JsonFile = None,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Skip the evaluation on held-out prompts.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings, and do nothing.")] = False,
) -> None:
    """Train a model and evaluate it on held-out prompts. Run the command again to resume an interrupted run."""
    from ..config import dump_config, load_config

    settings, results = load_config(config, [*(overrides or ()), *rows.settings()]), None
    if print_config:
        typer.echo(dump_config(settings), nl=False)
        return
    notes: list[str] = []  # the results have them too
    if no_eval or not settings.data.holds_out():
        if json_file is not None:
            raise ConfigError("--json writes the evaluation's results: leave out --no-eval and hold out groups")
        run = _train(settings, engine)
        notes = routing_notes(run.metrics()["routing"], run.model.config.tasks)
    else:
        _, results = train_and_measure(settings, "train", json_file, engine)
    _print(settings, results, notes)


def _print(settings: Config, results: Results | None, notes: Sequence[str] = ()) -> None:
    """Print the results and the output paths, in the main process only."""
    from ..training.processes import is_main
    from .tables import print_results, screen

    if not is_main():
        return
    console = screen()
    if results is not None:
        print_results(console, results)
    for line in (*notes, *output_paths(settings, measured=results is not None)):
        console.print(line, soft_wrap=True)


def train_and_measure(
    config: Config, command: str, json_file: Path | None = None, engine: str = "local"
) -> tuple[DMoERM, Results]:
    """Train, evaluate on the held-out part, and write results.json, report.html and the model card.

    The main process writes; all processes return the same results.
    """
    run = _train(config, engine)
    from ..data.splits import load_splits
    from ..evaluation import evaluate
    from ..training.processes import is_main, sharded
    from ..training.suspects import judge_labels

    test = load_splits(config).test
    judged = None if run.training is None or sharded() else judge_labels(run.training)
    results = evaluate(
        run.model,
        test,
        config,
        command=command,
        steps=run.metrics(),
        cache=run.cache,
        trained=run.truncation,
        judged=judged,
    )
    if is_main():
        _write(Path(config.output), results, json_file)
    return run.model, results


def _write(folder: Path, results: Results, json_file: Path | None) -> None:
    from ..evaluation import write_results
    from ..report import write_card, write_report

    for file in (folder / "results.json", json_file):
        if file is not None:
            write_results(file, results)
    write_report(folder / "report.html", results)
    write_card(folder / "model", results)


def _train(config: Config, engine: str = "local") -> Run:
    from ..training import train

    quieten()
    if engine == "local":
        return train(config)
    from ..distributed.cluster import import_ray
    from ..distributed.training import on_ray

    import_ray()  # first, so that a missing package is reported before the data is read
    return train(config, engine=on_ray)


def output_paths(config: Config, measured: bool) -> list[str]:
    """Return lines that name the files which the run has written."""
    folder = Path(config.output)
    lines = [f"model: {folder / 'model'}"]
    return [*lines, f"results: {folder / 'results.json'}", f"report: {folder / 'report.html'}"] if measured else lines
