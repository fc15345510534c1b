"""The options, settings and results files that the commands compare, bon and rl share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    Ablations,
    Conditions,
    Engine,
    ExperimentFolder,
    IncludeTrained,
    JsonFile,
    Members,
    Methods,
    Noise,
    Overrides,
    Seeds,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..config import Config
    from ..evaluation.results import Document
    from ..experiments.method_suite import Scoring
    from ..training.graph import Engine as TrainingEngine

ConfigName = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a shipped config such as human or demo.", metavar="CONFIG")
]


@dataclass(frozen=True)
class ExperimentOptions:
    """The options of compare and bon."""

    seeds: Seeds = None
    noise: Noise = None
    condition: Conditions = None
    method: Methods = None
    ablation: Ablations = None
    members: Members = 5
    include_trained: IncludeTrained = False
    engine: Engine = "local"
    output: ExperimentFolder = None
    overrides: Overrides = None
    json_file: JsonFile = None

    def config(self, name: str) -> Config:
        """Load the settings of the experiment's runs."""
        return experiment_config(name, self.overrides or (), self.output)

    @property
    def run_seeds(self) -> Sequence[int]:
        """The seeds of the runs."""
        return self.seeds or (0, 1, 2)

    @property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """Condition → the settings that it changes."""
        return parse_conditions(self.noise or (), self.condition or ())

    @property
    def methods(self) -> Sequence[str]:
        """Names of the methods to measure; none: the default ones."""
        return self.method or ()

    @property
    def ablations(self) -> Sequence[str]:
        """Names of the ablations."""
        from ..experiments.methods import ablation_methods

        return list(ablation_methods()) if self.ablation == ["all"] else self.ablation or ()


def parse_conditions(noise: Sequence[str], others: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Parse `--noise` and `--condition` to name → changed settings; clean and noisy unless some are given."""
    from ..config import parse_override
    from ..errors import ConfigError

    if not noise and not others:
        noise = ("clean=0,0", "noisy=0.25,0.15")
    conditions: dict[str, dict[str, Any]] = {}
    for text in noise:
        name, _, shares = text.partition("=")
        try:
            scores, capabilities = map(float, shares.split(","))
        except ValueError:
            raise ConfigError(f"--noise {text}: write it as NAME=0.25,0.15") from None
        conditions[name] = {"data.flip_scores": scores, "data.flip_capabilities": capabilities}
    for text in others:
        name, _, override = text.partition("=")
        if not name or "=" not in override:
            raise ConfigError(f"--condition {text}: write it as NAME=data.overall_fraction=0.1")
        setting, value = parse_override(override, f"--condition {text}")
        conditions.setdefault(name, {})[setting] = value
    return conditions


def experiment_config(config: str, overrides: Sequence[str], output: Path | None) -> Config:
    """Load the settings of an experiment's runs; `output` is the folder of all of them."""
    from ..config import changed, load_config
    from ..errors import ConfigError

    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"an experiment runs in one process, not {count}; start it without a launcher")
    settings = load_config(config, overrides)
    return changed(settings, {"output": str(output or f"{settings.output}-compare")})


@contextlib.contextmanager
def open_engine(name: str, config: Config) -> Iterator[TrainingEngine | None]:
    """Open the engine that executes the runs' steps; on Ray, all runs share one cluster while the block lasts."""
    if name == "local":
        yield None
        return
    from ..distributed.cluster import cluster
    from ..distributed.training import on_ray

    with cluster(config.ray.address):
        yield on_ray


def scoring_of(engine: str) -> Scoring:
    """Return the function that scores samples: in this process or on the cluster."""
    if engine == "local":
        from ..experiments.method_suite import score_here

        return score_here
    from ..distributed.suite_scoring import score_on_cluster

    return score_on_cluster


def command_line() -> str:
    """Return the command as it was typed, for the results file."""
    return " ".join(["dmoerm", *sys.argv[1:]])


def write_results(results: Document, path: Path, copy: Path | None, print_tables: Callable[[Console], None]) -> None:
    """Write the results file, a copy if one is requested, and the folder's report; print the tables and the paths."""
    from ..io.paths import write_file
    from ..report import write_folder_report
    from .tables import screen

    for file in (path, *([copy] if copy else [])):
        write_file(file, results.to_json())
    report = write_folder_report(path.parent)
    console = screen()
    print_tables(console)
    for line in (f"results: {path}", f"report: {report}"):
        console.print(line, soft_wrap=True)
