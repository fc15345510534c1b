"""`dmoerm train`, `eval`, `compare` and `demo`: from a config to a model, its results and their report."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import Config, changed, dump_config, load_config
from ..errors import ConfigError
from ..evaluation.results import Results, routing_notes
from ..io.paths import model_folder, write_file
from .models import prepare_libraries
from .options import Backbone, BatchTokens, Engine, JsonFile, Overrides, RowOptions, grouped, lazily, note
from .tables import print_comparison, print_results, print_scores, screen

if TYPE_CHECKING:
    from .. import model as models
    from .. import report, training
    from ..data import groups as stored
    from ..data import splits
    from ..distributed import cluster
    from ..distributed import training as ray_training
    from ..evaluation import comparison as comparing
    from ..evaluation import measure
    from ..training import suspects as suspected
else:
    report, training, models, stored, splits = lazily("report", "training", "model", "data.groups", "data.splits")
    cluster, ray_training = lazily("distributed.cluster", "distributed.training")
    comparing, measure, suspected = lazily("evaluation.comparison", "evaluation.measure", "training.suspects")

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
    if not no_eval and settings.data.holds_out():
        _, results = train_and_measure(settings, "train", engine)
        if training.is_main():
            print_results(console, results)
            _print_paths(settings)
        return
    run = _train(settings, engine)
    if training.is_main():
        for line in routing_notes(run.metrics()["routing"], run.model.config.tasks):  # the results have them too
            console.print(line, soft_wrap=True)
        _print_paths(settings, ("model",))


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
    texts = [group.responses[order[-1]], group.responses[order[0]]]
    console.print(f"\nA held-out prompt: {group.prompt}", soft_wrap=True)
    print_scores(console, texts, model.score(group.prompt, texts))
    _print_paths(config)


@grouped
def compare(
    config: ConfigName,
    rows: RowOptions,
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
    prepare_libraries()
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"a comparison runs in one process, not {count}; start it without a launcher")
    settings = load_config(config, [*(overrides or ()), *rows.settings()])
    settings = changed(settings, {"output": str(output or f"{settings.output}-compare")})
    command = " ".join(["dmoerm", *sys.argv[1:]])
    comparison = comparing.compare_methods(settings, seeds or (0, 1, 2), methods=methods or (), command=command)
    write_file(Path(settings.output) / "results.json", comparison.to_json())
    report.write_report(Path(settings.output) / "report.html", comparison)
    print_comparison(screen(), comparison)
    _print_paths(settings, ("results.json", "report.html"))


def train_and_measure(config: Config, command: str, engine: str = "local") -> tuple[models.DMoERM, Results]:
    """Train, evaluate on the held-out part, and write results.json, report.html and the model card.

    The main process writes; all processes return the same results.
    """
    run = _train(config, engine)
    judged = None if run.training is None or training.sharded() else suspected.judge_labels(run.training)
    results = measure.evaluate(
        run.model,
        splits.load_splits(config).test,
        config,
        command=command,
        steps=run.metrics(),
        cache=run.cache,
        trained=run.truncation,
        judged=judged,
    )
    if training.is_main():
        folder = Path(config.output)
        write_file(folder / "results.json", results.to_json())
        report.write_report(folder / "report.html", results)
        report.write_card(folder / "model", results)
    return run.model, results


def _train(config: Config, engine: str = "local") -> training.Run:
    prepare_libraries()
    if engine == "local":
        return training.train(config)
    cluster.import_ray()  # first, so that a missing package is reported before the data is read
    return training.train(config, engine=ray_training.on_ray)


def _print_paths(config: Config, names: tuple[str, ...] = ("model", "results.json", "report.html")) -> None:
    """Print the files that the command has written to the run's folder."""
    for name in names:
        screen().print(f"{Path(name).stem}: {Path(config.output) / name}", soft_wrap=True)


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
    json_file: JsonFile = None,
    report_folder: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write results.json and report.html here.")
    ] = None,
    backbone: Backbone = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Measure a model on held-out prompts, or on labeled data of your own."""
    prepare_libraries()
    rm = models.DMoERM.from_pretrained(model_folder(model), backbone=backbone, check=training.is_main())
    training.check_sharding(rm.config.router_kind == "own")
    training.move_to_device(rm)
    files = (Path(model) / "config.yaml", Path(model_folder(model)) / "run.yaml")
    config = next((load_config(file) for file in files if file.is_file()), None)
    if data:
        groups, known = rows.read(data), rm.config.tasks
        for task, count in Counter(g.task for g in groups if g.task and g.task not in known).items():
            reason = f"the model has no task {task!r}; it has {', '.join(known)}"
            note(f"the router decides for {count} groups: {reason}")
        groups = [g if not g.task or g.task in known else g.model_copy(update={"task": None}) for g in groups]
        groups = stored.overall_from_capabilities(groups)
    elif config is None:
        raise ConfigError(f"{model}: this model has no settings, so its held-out part is unknown; give --data")
    elif not config.data.holds_out():
        raise ConfigError(f"{model}: nothing is held out, since data.test_fraction is 0; give --data")
    else:
        groups = splits.load_splits(config).test
    results = measure.evaluate(
        rm,
        groups,
        config,
        command="eval",
        folder=model,
        files=data or (),
        steps=training.finished_steps(Path(model)) or training.finished_steps(Path(model).parent),
        batch_tokens=batch_tokens,
        cache=training.open_cache(config, rm) if config and not data else None,
        include_trained=include_trained,
    )
    if not training.is_main():
        return
    if json_file is not None:
        write_file(json_file, results.to_json())
    if report_folder is not None:
        write_file(report_folder / "results.json", results.to_json())
        report.write_report(report_folder / "report.html", results)
    print_results(screen(), results)
