"""`dmoerm eval`: measure how often a trained model, and the single models it contains, order pairs as people do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..config import Config, load_config
from ..data.overall import overall_from_capabilities
from ..data.splits import load_splits
from ..errors import ConfigError, DmoermError
from ..evaluation import evaluate, write_results
from ..io.paths import model_folder
from ..model import DMoERM
from ..model.training_prompts import TrainingPrompts
from ..report import write_report
from ..schema import Group
from ..training import open_cache
from ..training.processes import is_main
from ..training.sharding import check_sharding, move_to_device
from ..training.steps import finished_steps
from .models import quieten
from .options import BatchTokens, IncludeTrained, JsonFile, Overrides, RowOptions, grouped
from .tables import print_results, screen


@grouped
def command(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, a model's folder, a hub name.")],
    rows: RowOptions,
    data: Annotated[
        list[str] | None, typer.Option(help="Evaluate on these groups; else on the run's own held-out prompts.")
    ] = None,
    include_trained: IncludeTrained = False,
    overrides: Overrides = None,
    json_file: JsonFile = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write results.json and report.html here.")] = None,
    batch_tokens: BatchTokens = None,
) -> None:
    """Measure a model on held-out prompts, or on labeled data of your own."""
    quieten()
    rm = DMoERM.from_pretrained(model_folder(model), check=is_main())
    check_sharding(rm.config.router_kind == "own")
    move_to_device(rm)
    config = _config(Path(model), overrides or ())
    groups = overall_from_capabilities(_with_known_tasks(rows.read(data), rm)) if data else _held_out(config, model)
    if rm.training_prompts is None and config is not None:
        rm.training_prompts = _training_prompts(config)
    results = evaluate(
        rm,
        groups,
        config,
        command="eval",
        steps=finished_steps(Path(model)) or finished_steps(Path(model).parent),
        batch_tokens=batch_tokens,
        cache=open_cache(config, rm) if config and not data else None,
        include_trained=include_trained,
    )
    if not is_main():
        return
    if json_file is not None:
        write_results(json_file, results)
    if report is not None:
        write_results(report / "results.json", results)
        write_report(report / "report.html", results)
    print_results(screen(), results)


def _config(path: Path, overrides: Sequence[str]) -> Config | None:
    """Load the settings that the model was trained with, from the folder of its run or of the model."""
    if other := [override for override in overrides if not override.startswith("data.dir=")]:
        raise ConfigError(
            f"--set {other[0]}: eval accepts data.dir only; other settings would change the training part"
        )
    files = (path / "config.yaml", Path(model_folder(str(path))) / "run.yaml")
    return next((load_config(file, overrides) for file in files if file.is_file()), None)


def _training_prompts(config: Config) -> TrainingPrompts | None:
    """Return the training prompts of a checkpoint without a list, from its run's data; None if the data is missing."""
    try:
        return TrainingPrompts.of(group.prompt for group in load_splits(config).train)
    except (DmoermError, OSError):
        return None


def _held_out(config: Config | None, model: str) -> Sequence[Group]:
    """Return the run's test part, which the settings determine."""
    if config is None:
        raise ConfigError(f"{model}: this model has no settings, so its held-out part is unknown; give --data")
    if not config.data.holds_out():
        raise ConfigError(f"{model}: nothing is held out, since data.test_fraction is 0; give --data")
    return load_splits(config).test


def _with_known_tasks(groups: list[Group], model: DMoERM) -> list[Group]:
    """Return the groups without tasks that the model does not have; print a warning for each."""
    known = model.config.tasks
    for task, count in Counter(group.task for group in groups if group.task and group.task not in known).items():
        warning = f"the router decides for {count} groups: the model has no task {task!r}; it has {', '.join(known)}"
        Console(stderr=True).print(warning, soft_wrap=True, highlight=False, markup=False)
    return [g if not g.task or g.task in known else g.model_copy(update={"task": None}) for g in groups]
