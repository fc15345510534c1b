"""`dmoerm benchmark`: RewardBench 1 and 2 and RM-Bench, from a file or a hub name, for any reward model."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .models import quieten
from .options import JsonFile

if TYPE_CHECKING:
    from ..experiments.public_benchmarks import BenchmarkResult


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
    json_file: JsonFile = None,
) -> None:
    """Score a public benchmark: its subsets, its sections, and the one figure that is compared."""
    from ..data.readers import read_groups
    from ..experiments import public_benchmarks
    from ..experiments.external import method_of
    from ..io.paths import model_folder, write_file
    from .tables import benchmark_table, screen

    quieten()
    groups = [group for file in data for group in read_groups(file, split=split).groups]
    ways = {
        Name.REWARDBENCH: public_benchmarks.rewardbench,
        Name.REWARDBENCH2: public_benchmarks.rewardbench2,
        Name.RM_BENCH: public_benchmarks.rm_bench,
    }
    found: dict[str, BenchmarkResult] = {}
    for place in model:
        rewards = method_of(model_folder(place)).score_all(groups)
        found[place] = ways[name](list(zip(groups, rewards, strict=True)))
    screen().print(benchmark_table(found))
    if json_file is not None:
        result = {"schema": 1, "kind": "benchmark", "benchmark": name.value, "data": data}
        result["models"] = {place: asdict(one) for place, one in found.items()}
        write_file(Path(json_file), json.dumps(result, indent=2) + "\n")
