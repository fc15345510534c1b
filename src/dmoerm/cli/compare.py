"""`dmoerm compare`: measure DMoERM and simpler models on the same held-out prompts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..config import changed, load_config
from ..errors import ConfigError
from ..evaluation.comparison import compare_methods
from ..io.paths import write_file
from ..report import write_report
from .models import quieten
from .options import JsonFile, Overrides
from .tables import print_comparison, screen


def command(
    config: Annotated[
        str,
        typer.Argument(help="A YAML file, or the name of a shipped config such as human or demo.", metavar="CONFIG"),
    ],
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
    json_file: JsonFile = None,
) -> None:
    """Train and measure every method on the same held-out prompts. Run again, it resumes where it stopped."""
    quieten()
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"a comparison runs in one process, not {count}; start it without a launcher")
    settings = load_config(config, overrides or ())
    folder = output or Path(f"{settings.output}-compare")
    settings = changed(settings, {"output": str(folder)})
    command = " ".join(["dmoerm", *sys.argv[1:]])
    comparison = compare_methods(settings, seeds or (0, 1, 2), methods=methods or (), command=command)
    for file in (folder / "results.json", *([json_file] if json_file else [])):
        write_file(file, comparison.to_json())
    write_report(folder / "report.html", comparison)
    console = screen()
    print_comparison(console, comparison)
    for line in (f"results: {folder / 'results.json'}", f"report: {folder / 'report.html'}"):
        console.print(line, soft_wrap=True)
