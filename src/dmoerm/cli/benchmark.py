"""`dmoerm benchmark`: RewardBench 1 and 2 and RM-Bench, from a file or a hub name, for any reward model."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .models import quieten
from .options import IncludeTrained, JsonFile


class Name(StrEnum):
    """The benchmarks."""

    REWARDBENCH = "rewardbench"
    REWARDBENCH2 = "rewardbench2"
    RM_BENCH = "rm_bench"


def command(
    name: Annotated[Name, typer.Argument(help="Which benchmark's arithmetic.")],
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL…", help="DMoERM's or a sequence classifier's folder or hub name, a server's URL."
        ),
    ],
    data: Annotated[list[str], typer.Option(metavar="DATA", help="A file of its rows, or a `load_dataset` name.")],
    split: Annotated[str, typer.Option(help="Of a `load_dataset` name: `filtered` for RewardBench 1.")] = "train",
    include_trained: IncludeTrained = False,
    json_file: JsonFile = None,
) -> None:
    """Score a public benchmark: its subsets, its sections, and the one figure that is compared."""
    from ..data.readers import read_groups
    from ..experiments.external import open_scorer
    from ..experiments.public_benchmarks import run_benchmark
    from ..io.paths import model_folder, write_file
    from .tables import benchmark_table, screen

    quieten()
    groups = [group for file in data for group in read_groups(file, split=split).groups]
    models = {path: open_scorer(model_folder(path)) for path in model}
    run = run_benchmark(name.value, models, groups, include_trained)
    console = screen()
    console.print(benchmark_table(run.results))
    for remark in run.remarks:
        console.print(remark, soft_wrap=True)
    if json_file is not None:
        document = {"schema": 2, "kind": "benchmark", "benchmark": name.value, "data": data}
        document["models"] = {path: asdict(result) for path, result in run.results.items()}
        document["overlap"] = {path: overlap.model_dump() for path, overlap in run.overlap.items()}
        write_file(Path(json_file), json.dumps(document, indent=2) + "\n")
