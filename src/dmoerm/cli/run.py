"""`dmoerm train`, `eval`, `compare` and `demo`: from a config to a model, its results and their report."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..config import Config, changed, dump_config, load_config
from ..errors import ConfigError, DmoermError
from ..evaluation.results import Results, routing_notes, write_results
from ..io.paths import model_folder, write_file
from ..schema import Group
from .models import quieten
from .options import BatchTokens, Engine, JsonFile, Overrides, RowOptions, grouped, lazily, note
from .tables import print_comparison, print_results, scores_table, screen

if TYPE_CHECKING:
    from .. import model as models
    from .. import report, training
    from ..data import overall, splits
    from ..distributed import cluster
    from ..distributed import training as ray_training
    from ..evaluation import comparison as comparing
    from ..evaluation import measure
else:
    report, training, models, overall, splits = lazily("report", "training", "model", "data.overall", "data.splits")
    cluster, ray_training = lazily("distributed.cluster", "distributed.training")
    comparing, measure = lazily("evaluation.comparison", "evaluation.measure")

ConfigName = Annotated[str, typer.Argument(help="YAML file, or name of a shipped config such as human or fast.")]


@grouped
def train(
    config: ConfigName,
    rows: RowOptions,
    overrides: Overrides = None,
    engine: Engine = "local",
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Skip the evaluation on held-out prompts.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings, and do nothing.")] = False,
) -> None:
    """Train a model and evaluate it on held-out prompts. Run the command again to resume an interrupted run."""
    settings = load_config(config, [*(overrides or ()), *rows.settings()])
    if print_config:
        typer.echo(dump_config(settings), nl=False)
        return
    console = screen()
    if no_eval or not settings.data.holds_out():
        run = _train(settings, engine)
        if training.is_main():
            for line in routing_notes(run.metrics()["routing"], run.model.config.tasks):  # the results have them too
                console.print(line, soft_wrap=True)
            _print_paths(console, settings, measured=False)
    else:
        _, results = train_and_measure(settings, "train", engine)
        if training.is_main():
            print_results(console, results)
            _print_paths(console, settings)


def demo(
    output: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/demo.")] = None,
    overrides: Overrides = None,
) -> None:
    """Train a small model on 480 generated groups in minutes, evaluate it, and score one prompt."""
    config = load_config("demo", overrides or ())
    if output is not None:
        config = config.model_copy(update={"output": str(output)})
    model, results = train_and_measure(config, "demo")
    console = screen()
    print_results(console, results)
    groups = splits.load_splits(config).test
    group = next((group for group in groups if isinstance(group.prompt, str)), groups[0])
    order = sorted(range(len(group.responses)), key=lambda i: (group.grades or (0,) * len(group.responses))[i] or 0)
    responses = [group.responses[i] for i in (order[-1], order[0])]
    scores = model.score(group.prompt, responses)
    console.print(f"\nA held-out prompt: {group.prompt}", soft_wrap=True)
    route = sorted(scores[0].route.items(), key=lambda item: -item[1])[:2]
    console.print(f"route: {', '.join(f'{task} {probability:.1%}' for task, probability in route)}")
    console.print(scores_table(responses, scores))
    _print_paths(console, config)


def compare(
    config: ConfigName,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed of a run; may be repeated. Default: 0, 1 and 2.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="A method to measure besides dmoerm; may be repeated. Default: all."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the runs and results. Default: the config's `output` plus -compare.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train and measure every method on the same held-out prompts. Run again, it resumes where it stopped."""
    quieten()
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"a comparison runs in one process, not {count}; start it without a launcher")
    settings = load_config(config, overrides or ())
    folder = output or Path(f"{settings.output}-compare")
    settings = changed(settings, {"output": str(folder)})
    command = " ".join(["dmoerm", *sys.argv[1:]])
    comparison = comparing.compare_methods(settings, seeds or (0, 1, 2), methods=methods or (), command=command)
    write_file(folder / "results.json", comparison.to_json())
    report.write_report(folder / "report.html", comparison)
    console = screen()
    print_comparison(console, comparison)
    for line in (f"results: {folder / 'results.json'}", f"report: {folder / 'report.html'}"):
        console.print(line, soft_wrap=True)


def train_and_measure(config: Config, command: str, engine: str = "local") -> tuple[models.DMoERM, Results]:
    """Train, evaluate on the held-out part, and write results.json, report.html and the model card.

    The main process writes; all processes return the same results.
    """
    run = _train(config, engine)
    test = splits.load_splits(config).test
    judged = None if run.training is None or training.sharded() else training.judge_labels(run.training)
    results = measure.evaluate(
        run.model,
        test,
        config,
        command=command,
        steps=run.metrics(),
        cache=run.cache,
        trained=run.truncation,
        judged=judged,
    )
    if training.is_main():
        folder = Path(config.output)
        write_results(folder / "results.json", results)
        report.write_report(folder / "report.html", results)
        report.write_card(folder / "model", results)
    return run.model, results


def _train(config: Config, engine: str = "local") -> training.Run:
    quieten()
    if engine == "local":
        return training.train(config)
    cluster.import_ray()  # first, so that a missing package is reported before the data is read
    return training.train(config, engine=ray_training.on_ray)


def _print_paths(console: Console, config: Config, measured: bool = True) -> None:
    """Name the files which the run has written."""
    folder = Path(config.output)
    lines = [f"model: {folder / 'model'}"]
    lines += [f"results: {folder / 'results.json'}", f"report: {folder / 'report.html'}"] if measured else []
    for line in lines:
        console.print(line, soft_wrap=True)


# --- eval ----------------------------------------------------------------------------------------------------------


@grouped
def eval_(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, a model's folder, a hub name.")],
    rows: RowOptions,
    data: Annotated[
        list[str] | None, typer.Option(help="Evaluate on these groups; else on the run's own held-out prompts.")
    ] = None,
    include_trained: Annotated[
        bool, typer.Option("--include-trained", help="Keep prompts that a model was trained on.")
    ] = False,
    overrides: Overrides = None,
    json_file: JsonFile = None,
    report_folder: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write results.json and report.html here.")
    ] = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Measure a model on held-out prompts, or on labeled data of your own."""
    quieten()
    rm = models.DMoERM.from_pretrained(model_folder(model), check=training.is_main())
    training.check_sharding(rm.config.router_kind == "own")
    training.move_to_device(rm)
    config = _config(Path(model), overrides or ())
    groups = (
        overall.overall_from_capabilities(_with_known_tasks(rows.read(data), rm)) if data else _held_out(config, model)
    )
    if rm.training_prompts is None and config is not None:
        rm.training_prompts = _training_prompts(config)
    results = measure.evaluate(
        rm,
        groups,
        config,
        command="eval",
        steps=training.finished_steps(Path(model)) or training.finished_steps(Path(model).parent),
        batch_tokens=batch_tokens,
        cache=training.open_cache(config, rm) if config and not data else None,
        include_trained=include_trained,
    )
    if not training.is_main():
        return
    if json_file is not None:
        write_results(json_file, results)
    if report_folder is not None:
        write_results(report_folder / "results.json", results)
        report.write_report(report_folder / "report.html", results)
    print_results(screen(), results)


def _config(path: Path, overrides: Sequence[str]) -> Config | None:
    """Load the settings that the model was trained with, from the folder of its run or of the model."""
    if other := [override for override in overrides if not override.startswith("data.dir=")]:
        raise ConfigError(
            f"--set {other[0]}: eval accepts data.dir only; other settings would change the training part"
        )
    files = (path / "config.yaml", Path(model_folder(str(path))) / "run.yaml")
    return next((load_config(file, overrides) for file in files if file.is_file()), None)


def _training_prompts(config: Config) -> models.TrainingPrompts | None:
    """Return the training prompts of a checkpoint without a list, from its run's data; None if the data is missing."""
    try:
        return models.TrainingPrompts.of(group.prompt for group in splits.load_splits(config).train)
    except (DmoermError, OSError):
        return None


def _held_out(config: Config | None, model: str) -> Sequence[Group]:
    """Return the run's test part, which the settings determine."""
    if config is None:
        raise ConfigError(f"{model}: this model has no settings, so its held-out part is unknown; give --data")
    if not config.data.holds_out():
        raise ConfigError(f"{model}: nothing is held out, since data.test_fraction is 0; give --data")
    return splits.load_splits(config).test


def _with_known_tasks(groups: list[Group], model: models.DMoERM) -> list[Group]:
    """Return the groups without tasks that the model does not have; print a warning for each."""
    known = model.config.tasks
    for task, count in Counter(group.task for group in groups if group.task and group.task not in known).items():
        warning = f"the router decides for {count} groups: the model has no task {task!r}; it has {', '.join(known)}"
        note(warning)
    return [g if not g.task or g.task in known else g.model_copy(update={"task": None}) for g in groups]
