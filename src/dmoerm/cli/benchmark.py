"""`dmoerm benchmark`: score reward models on RewardBench 1 and 2 and RM-Bench."""

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
    name: Annotated[Name, typer.Argument(help="The benchmark.")],
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL…",
            help="A DMoERM or sequence classifier (folder or hub name), or the URL of a reward server.",
        ),
    ],
    data: Annotated[
        list[str], typer.Option(metavar="DATA", help="A file with the benchmark's rows, or a `load_dataset` name.")
    ],
    split: Annotated[str, typer.Option(help="Split of a `load_dataset` name; `filtered` for RewardBench 1.")] = "train",
    include_trained: IncludeTrained = False,
    json_file: JsonFile = None,
) -> None:
    """Score models on a public benchmark: subsets, sections and the overall figure."""
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
