"""Every method's rewards of many samples on Ray: a pool of actors that each hold a finished run and its baselines.

    run/samples/DIGEST/samples.jsonl        the queries
    run/samples/DIGEST/rewards-MEMBERS/     their rewards, as parts; what is there is not scored again

All machines must reach the run's folder. What is computed is what `experiments.method_suite.score_here` computes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from rich.console import Console
from rich.progress import Progress

from ..config import Config
from ..data.splits import Splits
from ..experiments.method_suite import SHARD_QUERIES, Panel, Rewards, reopen_panel
from ..io.paths import write_file
from ..schema import Query
from ..scoring.score_rows import OnBad, ScoreRow
from .batch_scoring import ActorPool, ScoringJob, score_on_ray
from .training import reachable


@dataclass(frozen=True)
class PanelRows:
    """A panel as a `RowScorer`: `rewards` are dmoerm's, and `capabilities` has every method's by its name."""

    panel: Panel

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[tuple[Query, ScoreRow]]:
        """See `RowScorer`; all queries share their passes, and what cannot be scored is always raised."""
        for one in self.panel.score(list(queries), console=Console(quiet=True)):
            methods = {method: rewards.tolist() for method, rewards in one.rewards.items()}
            yield one.group, {"id": one.group.id, "rewards": methods["dmoerm"], "capabilities": methods}


def open_rows(config: Config, data: Splits, members: int) -> PanelRows:
    """The panel as what scores rows; in an actor."""
    return PanelRows(reopen_panel(config, data, members))


def score_there(panel: Panel, queries: Sequence[Query], console: Console) -> list[Rewards]:
    """The `Scoring` of a cluster; the run's `ray.cpus` and `ray.gpus` are an actor's.

    Raises what `score_on_ray` does.
    """
    config = reachable(panel.run.config)
    text = "".join(query.model_dump_json() + "\n" for query in queries)
    folder = Path(config.output) / "samples" / hashlib.sha256(text.encode()).hexdigest()[:16]
    file, rewards = folder / "samples.jsonl", folder / f"rewards-{panel.members}"  # baselines of so many members
    if not file.exists():
        write_file(file, text)
    job = ScoringJob(config.output, str(file), str(rewards), "native", shard_rows=SHARD_QUERIES)
    opened = functools.partial(open_rows, config, panel.data, panel.members)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("scoring")
        pool = ActorPool(cpus=config.ray.cpus, gpus=config.ray.gpus)
        manifest = score_on_ray(job, opened, pool, lambda done, total, _: bars.update(bar, completed=done, total=total))
    return [row for part in manifest["parts"] for row in _rewards(rewards / part["part"])]


def _rewards(part: Path) -> Iterator[Rewards]:
    for row in parquet.read_table(part, columns=["capabilities"]).to_pylist(maps_as_pydicts="strict"):
        yield {method: np.array(rewards) for method, rewards in row["capabilities"].items()}
