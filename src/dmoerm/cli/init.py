"""`dmoerm init`: look at data of any format, and write the config of a run on it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import load_config
from ..data.readers import parse_columns
from ..data.values import as_name
from ..errors import ConfigError
from ..io.paths import write_file
from ..taxonomy import draft_taxonomy
from .options import Format, Map, lazily
from .tables import screen, table

if TYPE_CHECKING:
    from ..data import proposal as proposals
    from ..data import recipe as recipes
    from ..data import splits
else:
    proposals, recipes, splits = lazily("data.proposal", "data.recipe", "data.splits")


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
    import torch

    config = out or Path(f"{_stem(files[0])}.yaml")
    taxonomy, copy = (config.with_name(f"{config.stem}-{part}") for part in ("taxonomy.yaml", "data.jsonl"))
    if not force and (existing := [str(file) for file in (config, taxonomy, copy) if file.exists()]):
        raise ConfigError(f"{', '.join(existing)}: already there; name another config with --out, or add --force")
    columns = parse_columns(map or ())
    proposal = proposals.propose(
        files, format=format, split=split, columns=columns, task_column=task_column, clusters=clusters
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    recipe = recipes.choose_recipe(proposal.groups, cores, gpu, backbone is not None)
    if proposal.changed:
        lines = (group.model_dump_json(exclude_defaults=True) for group in proposal.groups)
        write_file(copy, "".join(f"{line}\n" for line in lines))
    graded = {group.task for group in proposal.groups if group.capabilities}
    ungraded = sorted({group.task for group in proposal.groups if group.task} - graded)
    drafted = draft_taxonomy(proposal.groups, _stem(str(config)), general=proposal.general).to_yaml()
    general = f"# No row of {', '.join(ungraded)} has grades of capabilities: these are general ones, to be edited.\n"
    edit = "# Drafted from data: edit the titles, descriptions and rubrics.\n"
    write_file(taxonomy, edit + general * bool(ungraded) + drafted)
    settings = {
        "output": str(Path("runs") / _stem(str(config))),
        "taxonomy": str(taxonomy),
        "data.files": [str(copy)] if proposal.changed else files,
        "data.map": None if proposal.changed else columns or None,
        **_reading(proposal, split),
        "backbone.path": backbone,
    }
    write_file(config, recipes.config_text(proposal, recipe, settings))
    splits.load_splits(load_config(config))  # what would stop `dmoerm train` is reported now
    console = screen()
    written = [config, taxonomy, *([copy] if proposal.changed else [])]
    sources = list(zip(files, proposal.formats, strict=True))
    console.print(table("Data", ["source", "format"], sources))
    console.print(table(f"Tasks by {proposal.tasks_from}", ["task", "groups", "capabilities"], _tasks(proposal)))
    for line in (*proposal.notes, f"wrote {', '.join(str(file) for file in written)}"):
        console.print(line, soft_wrap=True)

    options = ["--format", format] if format != "auto" else []
    mapped = ",".join(f"{field}={column}" for field, column in columns.items())
    rows = [files[0], *options, *(["--map", mapped] if mapped else []), *["--skip-bad"] * proposal.rejected]
    output, labels = settings["output"], str(config.with_name(f"{config.stem}-labels.parquet"))
    lines = [
        f"next: dmoerm train {config}  # about {recipe.minutes} min",
        f"then: dmoerm score {output} --input {shlex.join(rows)} --output scores.jsonl",
    ]
    if ungraded:
        maps = [part for each in map or () for part in ("--map", each)]
        data = [str(copy)] if proposal.changed else [*files, *options, *maps]
        label = [*data, "--taxonomy", str(taxonomy), "--model", "gpt-4o-mini", "--out", labels]
        train = [str(config), "--set", f"data.capability_labels={labels}", "--set", f"output={output}-labeled"]
        lines += [
            f"{', '.join(ungraded)}: no grades of capabilities, so no experts. Edit the rubrics in {taxonomy}, then:",
            f"label: dmoerm label {shlex.join(label)}  # asks a judge; --dry-run counts the calls",
            f"train: dmoerm train {shlex.join(train)}",
        ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _stem(file: str) -> str:
    """Return a file's or dataset's name without suffixes, as a plain name."""
    return as_name(PurePath(file).name.removesuffix(".gz").rsplit(".", 1)[0])


def _reading(proposal: proposals.Proposal, split: str) -> dict[str, str | None]:
    """Return the settings by which `train` reads the sources, or their copy, as `init` did."""
    if proposal.changed:
        return {"data.format": "native"}
    formats = set(proposal.formats)
    known = formats.pop() if len(formats) == 1 else None
    return {"data.format": known, "data.split": None if split == "train" else split, "data.task": proposal.one_task}


def _tasks(proposal: proposals.Proposal) -> list[Sequence[object]]:
    rows = []
    for task in sorted({group.task for group in proposal.groups if group.task}):
        members = [group for group in proposal.groups if group.task == task]
        names = sorted({name for group in members for name in group.capabilities})
        rows.append([task, len(members), ", ".join(names) or "–"])
    return rows
