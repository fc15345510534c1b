"""What the commands compare, bon and rl begin and end with: their conditions and settings, their results files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Config
    from ..evaluation.results import Document
    from ..experiments.method_suite import Scoring
    from ..training.graph import Engine


def conditions_of(noise: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Name → shares of reversed overall and capability pairs; clean and noisy where none is given."""
    from ..errors import ConfigError

    conditions = {}
    for text in noise:
        name, _, shares = text.partition("=")
        try:
            scores, capabilities = map(float, shares.split(","))
        except ValueError:
            raise ConfigError(f"--noise {text}: write it as NAME=0.25,0.15") from None
        conditions[name] = (scores, capabilities)
    return conditions or {"clean": (0.0, 0.0), "noisy": (0.25, 0.15)}


def experiment_config(config: str, overrides: Sequence[str], output: Path | None) -> Config:
    """The settings of an experiment's runs; `output` is the folder of all of them."""
    from ..config import changed, load_config
    from ..errors import ConfigError

    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"{count} processes: an experiment takes one; only train and eval divide their work")
    settings = load_config(config, overrides)
    return changed(settings, {"output": str(output or f"{settings.output}-compare")})


@contextlib.contextmanager
def engine_of(name: str, config: Config) -> Iterator[Engine | None]:
    """Where the runs' steps are done; on Ray, one cluster for all of them while the block lasts."""
    if name == "local":
        yield None
        return
    from ..distributed.cluster import cluster
    from ..distributed.training import on_ray

    with cluster(config.ray.address):
        yield on_ray


def scoring_of(engine: str) -> Scoring:
    """Where samples are scored."""
    if engine == "local":
        from ..experiments.method_suite import score_here

        return score_here
    from ..distributed.method_suite import score_on_cluster

    return score_on_cluster


def write_results(results: Document, path: Path, copy: Path | None) -> list[str]:
    """Write the results file, a copy if one is asked for, and the folder's report; return lines that say where."""
    from ..io.paths import write_file
    from ..report import write_folder_report

    for file in (path, *([copy] if copy else [])):
        write_file(file, results.to_json())
    return [f"results: {path}", f"report: {write_folder_report(path.parent)}"]
