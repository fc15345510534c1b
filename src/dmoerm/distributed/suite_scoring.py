"""Rewards of many samples by every method on Ray: a pool of actors, each with a finished run and its methods.

    run/samples/DIGEST/samples.jsonl        the queries
    run/samples/DIGEST/members-K-METHODS/   their rewards with ensembles of K, in parts; each part is scored once

All machines must have access to the run's folder. The rewards equal those of `experiments.method_suite.score_here`. An
actor has the built-in methods and those of entry points; METHODS is a digest of the names of the chosen ones.
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
from ..experiments.method_suite import SHARD_QUERIES, MemberRewards, MethodSuite, reopen_suite
from ..io.paths import write_file
from ..schema import Query
from ..scoring.score_rows import OnBad, ScoreRow
from .batch_scoring import ActorPool, ScoringJob, score_on_ray
from .training import reachable


@dataclass(frozen=True)
class SuiteRows:
    """A method suite as a `RowScorer`: `rewards` are those of dmoerm, `capabilities` those of each method's members."""

    suite: MethodSuite

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[tuple[Query, ScoreRow]]:
        """See `RowScorer`. All queries share passes, and a query that cannot be scored always raises an error."""
        queries = list(queries)
        rewards = self.suite.member_rewards(queries, console=Console(quiet=True))
        for query, members in zip(queries, rewards, strict=True):
            rows = {f"{name}/{i}": row.tolist() for name, table in members.items() for i, row in enumerate(table)}
            yield query, {"id": query.id, "rewards": rows["dmoerm/0"], "capabilities": rows}


def open_rows(config: Config, data: Splits, members: int, methods: Sequence[str]) -> SuiteRows:
    """Open the suite in an actor."""
    return SuiteRows(reopen_suite(config, data, members, methods))


def score_on_cluster(suite: MethodSuite, queries: Sequence[Query], console: Console) -> list[MemberRewards]:
    """Score on a cluster (a `Scoring`); the run's `ray.cpus` and `ray.gpus` are those of one actor.

    Raises:
        DmoermError: as `score_on_ray`.
    """
    config, members = reachable(suite.run.config), suite.context.members
    methods = tuple(suite.methods)
    text = "".join(query.model_dump_json() + "\n" for query in queries)
    folder = Path(config.output) / "samples" / _digest([text])
    file, rewards = folder / "samples.jsonl", folder / f"members-{members}-{_digest(methods)}"
    if not file.exists():
        write_file(file, text)
    job = ScoringJob(config.output, str(file), str(rewards), "native", shard_rows=SHARD_QUERIES)
    opened = functools.partial(open_rows, config, suite.data, members, methods)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("scoring")
        pool = ActorPool(cpus=config.ray.cpus, gpus=config.ray.gpus)
        manifest = score_on_ray(job, opened, pool, lambda done, total, _: bars.update(bar, completed=done, total=total))
    return [row for part in manifest["parts"] for row in _rewards(rewards / part["part"])]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _rewards(part: Path) -> Iterator[MemberRewards]:
    for row in parquet.read_table(part, columns=["capabilities"]).to_pylist(maps_as_pydicts="strict"):
        members: dict[str, list[list[float]]] = {}
        for name, rewards in row["capabilities"].items():  # members are in order
            members.setdefault(name.rpartition("/")[0], []).append(rewards)
        yield {method: np.array(rows) for method, rows in members.items()}
