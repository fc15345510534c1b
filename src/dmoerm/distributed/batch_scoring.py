"""Batch scoring on Ray Data: files are split into shards, and actors that each hold a scorer write one part per shard.

    output/plan.json            the shards and the scorer; a run that continues must have the same
    output/part-00000.parquet   a shard's rows, in order; complete or absent
    output/manifest.json        written last: the parts in the input's order, and the totals

Parts that exist are not scored again. The rows are those that the same scorer gives in a stream on one machine.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from pydantic import BaseModel

from .. import errors
from ..data.readers import read_queries
from ..errors import ConfigError, DmoermError
from ..io.storage import complete_at, exists, matching, open_binary, remove_leftovers_at, version
from ..scoring.output import open_output
from ..scoring.score_rows import RowScorer, ScoreCounts, written_rows
from ..scoring.shards import Shard, shard_rows, shards_of
from .cluster import cluster, worker_slots

OpenScorer = Callable[[], RowScorer]
"""Loads the scorer; called once in each actor, so it must be picklable: a function of a module, or a partial of one."""


@dataclass(frozen=True)
class ScoringJob:
    """The input, the output and the options of a run.

    Attributes:
        scorer: a description of the scorer, for `plan.json`.
        input: a file, a pattern or a URL, in a format of `dmoerm.data.readers`.
        output: the folder or URL of the parts.
        format: the rows' format.
        skip_bad: skip rows that cannot be scored.
        shard_rows: maximum rows of a part.
        best: add the best response to each row.
        columns: field of the format → column of the input; see `ColumnMap`.
    """

    scorer: str
    input: str
    output: str
    format: str = "auto"
    skip_bad: bool = False
    shard_rows: int = 1000
    best: bool = False
    columns: dict[str, Any] = field(default_factory=dict)

    def part(self, number: int) -> str:
        """Return the file of the shard with this number."""
        return self.file(f"part-{number:05}.parquet")

    def file(self, name: str) -> str:
        """Return the path of a file in the output."""
        return f"{self.output.rstrip('/')}/{name}"


@dataclass(frozen=True)
class ActorPool:
    """The actors.

    Attributes:
        actors: their maximum number; None: as many as the cluster has capacity for.
        cpus, gpus: of each actor.
    """

    actors: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


class ShardResult(BaseModel):
    """The result of one shard.

    Attributes:
        left_out: why rows were skipped; empty if the part existed already.
        error: class and message of the error that ended the shard.
    """

    number: int
    queries: int = 0
    responses: int = 0
    tasks: dict[str, int] = {}
    left_out: tuple[str, ...] = ()
    error: tuple[str, str] | None = None


class _Plan(BaseModel):
    scorer: str
    input: str
    format: str
    skip_bad: bool
    shard_rows: int
    best: bool = False
    columns: dict[str, Any] = {}
    shards: tuple[Shard, ...] = ()
    files: dict[str, str] = {}


def score_on_ray(
    job: ScoringJob,
    open_scorer: OpenScorer,
    pool: ActorPool | None = None,
    on_shard: Callable[[int, int, ShardResult], None] = lambda *_: None,
) -> dict[str, Any]:
    """Score all rows that are not scored yet; return the manifest.

    Args:
        on_shard: called after each shard with the rows done, all rows and the shard's result.

    Raises:
        ConfigError: ray is not installed, or the output has the scores of another job.
        ClusterError: the cluster cannot be reached.
        DataError: a row cannot be scored; finished parts stay.
    """
    with cluster() as ray:
        shards = _plan_shards(ray, job)
        total, done, counts = sum(shard.rows for shard in shards), 0, ScoreCounts()
        for result in _run(ray, job, open_scorer, shards, pool or ActorPool()):
            if result.error is not None:
                kind, message = result.error
                raise getattr(errors, kind)(message)
            done += shards[result.number].rows
            counts.merge(ScoreCounts(result.queries, result.responses, Counter(result.tasks)))
            on_shard(done, total, result)
    return _write_manifest(job, shards, counts)


def _plan_shards(ray: Any, job: ScoringJob) -> Sequence[Shard]:
    """Return the shards of `plan.json` if the files are unchanged, or split each file in a task of its own."""
    path = job.file("plan.json")
    plan = _Plan(**{name: getattr(job, name) for name in _Plan.model_fields if hasattr(job, name)})
    files = {file: version(file) for file in matching(job.input)}
    if exists(path):
        with open_binary(path) as file:
            earlier = _Plan.model_validate_json(file.read())
        if earlier.model_copy(update={"shards": (), "files": {}}) != plan:
            message = f"{job.output}: has the scores of another job; choose another --output, or delete it"
            raise ConfigError(message)
        _check_unchanged(job, earlier.files, files)
        return earlier.shards
    split = ray.remote(shards_of)
    by_file = ray.get([split.remote(file, job.shard_rows) for file in files])
    shards = tuple(shard for file_shards in by_file for shard in file_shards)
    _write(path, plan.model_copy(update={"shards": shards, "files": files}).model_dump_json())
    return shards


def _check_unchanged(job: ScoringJob, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise `ConfigError` if the input has changed since it was split."""
    for file in sorted(before.keys() | now.keys()):
        was, current = before.get(file, "not part of the input"), now.get(file, "not part of the input")
        if was != current:
            raise ConfigError(
                f"{file}: has changed since {job.output} was started (was: {was}; is: {current}); "
                "choose another --output, or delete it"
            )


def _run(
    ray: Any, job: ScoringJob, open_scorer: OpenScorer, shards: Sequence[Shard], pool: ActorPool
) -> Iterator[ShardResult]:
    """Yield the shards' results as they finish. Ray Data restarts lost actors and gives them their shards again."""
    import ray.data as ray_data

    ray_data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"number": number, "shard": shard.model_dump_json()} for number, shard in enumerate(shards)]
    actors = min(pool.actors or worker_slots(ray, pool.cpus, pool.gpus), len(shards))
    dataset = ray_data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(job, open_scorer),
        batch_size=1,
        compute=ray_data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    for row in dataset.iter_rows():
        yield ShardResult.model_validate_json(row["result"])


class _Actor:
    """Holds a scorer, loaded once, and writes one part per shard."""

    def __init__(self, job: ScoringJob, open_scorer: OpenScorer) -> None:
        self._job, self._open = job, open_scorer
        self._scorer: RowScorer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        pairs = zip(batch["number"], batch["shard"], strict=True)
        results = [self._result(int(number), Shard.model_validate_json(str(shard))) for number, shard in pairs]
        return {"result": [result.model_dump_json() for result in results]}

    def _result(self, number: int, shard: Shard) -> ShardResult:
        part, left_out = self._job.part(number), []
        try:
            if exists(part):
                remove_leftovers_at(part)  # a writer killed after its last step leaves its lock
            else:
                self._score(part, shard, left_out)
            counts = _counts_of(part)
        except DmoermError as error:
            return ShardResult(number=number, error=(type(error).__name__, str(error)))
        return ShardResult(number=number, left_out=tuple(left_out), **counts.summary())

    def _score(self, part: str, shard: Shard, left_out: list[str]) -> None:
        self._scorer = self._scorer or self._open()
        on_bad = (lambda error: left_out.append(str(error))) if self._job.skip_bad else None
        reading: Any = {"format": self._job.format, "columns": self._job.columns, "on_bad": on_bad}
        queries = read_queries(shard.file, rows=shard_rows(shard), **reading)
        with open_output(part, self._job.best) as write:
            for row in written_rows(self._scorer, queries, on_bad, self._job.best):
                write([row])


def _counts_of(part: str) -> ScoreCounts:
    counts = ScoreCounts()
    with open_binary(part) as file:
        columns = parquet.read_table(file, columns=["task", "rewards"]).to_pydict()
    for task, rewards in zip(columns["task"], columns["rewards"], strict=True):
        counts.add(task, len(rewards))
    return counts


def _write_manifest(job: ScoringJob, shards: Sequence[Shard], counts: ScoreCounts) -> dict[str, Any]:
    names = [Path(job.part(number)).name for number in range(len(shards))]
    parts = [
        {"part": name, "file": shard.file, "first": shard.first, "rows": shard.rows}
        for name, shard in zip(names, shards, strict=True)
    ]
    left_out = sum(shard.rows for shard in shards) - counts.queries
    manifest = {"schema": 1, "scorer": job.scorer, "input": job.input, **counts.summary(), "left_out": left_out}
    manifest["parts"] = parts
    _write(job.file("manifest.json"), json.dumps(manifest, ensure_ascii=False))
    return manifest


def _write(path: str, text: str) -> None:
    with complete_at(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
