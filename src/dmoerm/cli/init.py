"""`dmoerm init`: look at data of any format, and write the config of a run on it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Format, Map

if TYPE_CHECKING:
    from ..data.proposal import Proposal
    from ..data.recipe import LocalMachine


def command(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Preference data of any format: files, or datasets.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The config. Default: the first file's name with .yaml, here.")
    ] = None,
    format: Format = "auto",
    map: Map = None,
    split: Annotated[str, typer.Option(help="Split to read, for datasets only.")] = "train",
    task_column: Annotated[str | None, typer.Option(help="Column whose values are the tasks.")] = None,
    clusters: Annotated[
        int | None, typer.Option(min=1, max=8, help="Tasks by this many clusters of prompts. Default: by the data.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="A model's folder or hub name. Default: SmolLM2-135M.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Propose tasks, a taxonomy and a recipe for preference data, and write a config that trains on it."""
    from ..config import load_config
    from ..data.columns import columns_of, parse_columns
    from ..data.proposal import propose
    from ..data.recipe import choose_recipe, config_text
    from ..data.splits import load_splits
    from ..io.paths import write_file
    from ..taxonomy import draft_taxonomy

    config = out or Path(f"{_stem(files[0])}.yaml")
    taxonomy, copy = (config.with_name(f"{config.stem}-{part}") for part in ("taxonomy.yaml", "data.jsonl"))
    if not force:
        _refuse_existing(config, taxonomy, copy)
    columns = parse_columns(map or (), files)
    proposal = propose(files, format=format, split=split, columns=columns, task_column=task_column, clusters=clusters)
    recipe = choose_recipe(proposal.groups, _machine(), backbone is not None)
    if proposal.changed:
        lines = (group.model_dump_json(exclude_defaults=True) for group in proposal.groups)
        write_file(copy, "".join(f"{line}\n" for line in lines))
    graded = {group.task for group in proposal.groups if group.capabilities}
    ungraded = sorted({group.task for group in proposal.groups if group.task} - graded)
    drafted = draft_taxonomy(proposal.groups, _stem(str(config)), general=proposal.general).to_yaml()
    general = f"# No row of {', '.join(ungraded)} has grades of capabilities: these are general ones, to be edited.\n"
    write_file(taxonomy, _EDIT + general * bool(ungraded) + drafted)
    settings = {
        "output": str(Path("runs") / _stem(str(config))),
        "taxonomy": str(taxonomy),
        "data.files": [str(copy)] if proposal.changed else files,
        "data.map": None if proposal.changed else columns or None,
        **_options(proposal, split, backbone),
    }
    write_file(config, config_text(proposal, recipe, settings))
    load_splits(load_config(config))  # what would stop `dmoerm train` is reported now
    _print(proposal, files, [config, taxonomy, *([copy] if proposal.changed else [])])
    options = ["--format", format] if format != "auto" else []
    mapped = ",".join(f"{field}={column}" for field, column in columns_of(columns, files[0]).items())
    reading = [files[0], *options, *(["--map", mapped] if mapped else [])]
    reading += ["--skip-bad"] if proposal.rejected else []
    _print_next(config, settings["output"], reading, recipe.minutes)
    if ungraded:
        options += [part for each in map or () for part in ("--map", each)]
        _print_labeling(config, settings, [str(copy)] if proposal.changed else [*files, *options], ", ".join(ungraded))


_EDIT = "# Drafted from data: edit the titles, descriptions and rubrics.\n"


def _stem(file: str) -> str:
    """Return a file's or dataset's name without suffixes, as a plain name."""
    from ..data.values import as_name

    return as_name(PurePath(file).name.removesuffix(".gz").rsplit(".", 1)[0])


def _refuse_existing(*files: Path) -> None:
    from ..errors import ConfigError

    if existing := [str(file) for file in files if file.exists()]:
        raise ConfigError(f"{', '.join(existing)}: already there; name another config with --out, or add --force")


def _machine() -> LocalMachine:
    import torch

    from ..data.recipe import LocalMachine

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return LocalMachine(cores, torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def _options(proposal: Proposal, split: str, backbone: str | None) -> dict[str, str | None]:
    formats = set(proposal.formats)
    known = "native" if proposal.changed else formats.pop() if len(formats) == 1 else None
    task = None if proposal.changed else proposal.one_task
    named = None if split == "train" or proposal.changed else split
    return {"data.format": known, "data.split": named, "data.task": task, "backbone.path": backbone}


def _print(proposal: Proposal, files: list[str], written: list[Path]) -> None:
    from rich.markup import escape

    from .tables import plain_table, screen

    console = screen()
    console.print(plain_table("Data", ["source", "format"], list(zip(files, proposal.formats, strict=True))))
    tasks = sorted({group.task for group in proposal.groups if group.task})
    rows = [[task, *_counts(proposal, task)] for task in tasks]
    console.print(plain_table(f"Tasks by {proposal.tasks_from}", ["task", "groups", "capabilities"], rows))
    for note in proposal.notes:
        console.print(escape(note), soft_wrap=True)
    console.print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)


def _print_next(config: Path, run: str, rows: list[str], minutes: int) -> None:
    from .tables import screen

    for line in (
        f"next: dmoerm train {config}  # about {minutes} min",
        f"then: dmoerm score {run} --input {shlex.join(rows)} --output scores.jsonl",
    ):
        screen().print(line, soft_wrap=True, highlight=False)


def _print_labeling(config: Path, settings: Mapping[str, Any], data: Sequence[str], tasks: str) -> None:
    """Print the commands that label the drafted capabilities of the tasks and train on the labels."""
    from .tables import screen

    labels = str(config.with_name(f"{config.stem}-labels.parquet"))
    label = [*data, "--taxonomy", settings["taxonomy"], "--model", "gpt-4o-mini", "--out", labels]
    train = ["--set", f"data.capability_labels={labels}", "--set", f"output={settings['output']}-labeled"]
    for line in (
        f"{tasks}: no grades of capabilities, so no experts. Edit the rubrics in {settings['taxonomy']}, then:",
        f"label: dmoerm label {shlex.join(label)}  # asks a judge; --dry-run counts the calls",
        f"train: dmoerm train {shlex.join([str(config), *train])}",
    ):
        screen().print(line, soft_wrap=True, highlight=False)


def _counts(proposal: Proposal, task: str) -> tuple[int, str]:
    members = [group for group in proposal.groups if group.task == task]
    return len(members), ", ".join(sorted({name for group in members for name in group.capabilities})) or "–"
