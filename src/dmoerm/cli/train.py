"""`dmoerm train`: from a config to a saved model, its measured results, the report and the card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .models import quieten
from .options import Engine, JsonFile, Overrides

if TYPE_CHECKING:
    from ..config import Config
    from ..evaluation import Results
    from ..model import DMoERM
    from ..training import Run


def command(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config such as human or fast.")],
    overrides: Overrides = None,
    engine: Engine = "local",
    json_file: JsonFile = None,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Do not evaluate on the held-out prompts.")] = False,
) -> None:
    """Train a model and evaluate it on held-out prompts. Started again, it goes on where it was stopped."""
    from ..config import load_config

    settings, results = load_config(config, overrides or ()), None
    if no_eval:
        _train(settings, engine)
    else:
        _, results = train_and_measure(settings, "train", json_file, engine)
    _print(settings, results)


def _print(settings: Config, results: Results | None) -> None:
    """The main process says what was measured and where it lies."""
    from ..training.processes import is_main
    from .tables import print_results, screen

    if not is_main():
        return
    console = screen()
    if results is not None:
        print_results(console, results)
    for line in places(settings, measured=results is not None):
        console.print(line, soft_wrap=True)


def train_and_measure(
    config: Config, command: str, json_file: Path | None = None, engine: str = "local"
) -> tuple[DMoERM, Results]:
    """Trains, evaluates on the held-out part, and writes results.json, report.html and the model's card.

    Of several processes the main one writes; all get the same results.
    """
    run = _train(config, engine)
    from ..data.splits import load_splits
    from ..evaluation import evaluate
    from ..training.processes import is_main

    test = load_splits(config).test
    results = evaluate(run.model, test, config, command=command, steps=run.metrics(), cache=run.cache)
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

    import_ray()  # first: that it is missing must not be told after the data are read
    return train(config, engine=on_ray)


def places(config: Config, measured: bool) -> list[str]:
    """Where the run has left what."""
    folder = Path(config.output)
    lines = [f"model: {folder / 'model'}"]
    return [*lines, f"results: {folder / 'results.json'}", f"report: {folder / 'report.html'}"] if measured else lines
