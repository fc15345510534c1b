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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow.parquet as parquet
from pydantic import BaseModel

from .. import errors
from ..data.readers import read_queries
from ..errors import ConfigError, DmoermError
from ..evaluation.scoring_files import RowScorer, ScoreCounts, Shard, open_output, shards_of
from ..io.storage import complete_at, exists, matching, open_binary, remove_leftovers_at, version
from .cluster import cluster, worker_slots

OpenScorer = Callable[[], RowScorer]
"""Loads the scorer; called once in each actor, so it must be picklable: a function of a module, or a partial of one."""


class ScoringJob(BaseModel):
    """The input, the output and the options of a run."""

    scorer: str  # a description, for `plan.json`
    input: str  # a file, a pattern or a URL, in a format of `dmoerm.data.readers`
    output: str  # the folder or URL of the parts
    format: str = "auto"
    skip_bad: bool = False  # skip rows that cannot be scored
    shard_rows: int = 1000  # maximum rows of a part
    best: bool = False  # the rows have the best response
    columns: dict[str, Any] = {}  # field of the format → column of the input, where the names differ

    def file(self, name: str) -> str:
        """Return the path of a file in the output."""
        return f"{self.output.rstrip('/')}/{name}"

    def write(self, name: str, text: str) -> None:
        """Write a file of the output, completely or not at all."""
        with complete_at(self.file(name)) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8")


class ShardResult(BaseModel):
    """The result of one shard."""

    number: int
    counts: ScoreCounts = ScoreCounts()
    left_out: tuple[str, ...] = ()  # why rows were skipped; empty if the part existed already
    error: tuple[str, str] | None = None  # class and message of the error that ended the shard


def score_on_ray(
    job: ScoringJob,
    open_scorer: OpenScorer,
    actors: int | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    on_shard: Callable[[int, int, ShardResult], None] = lambda *_: None,
) -> dict[str, Any]:
    """Score all rows that are not scored yet; return the manifest.

    Args:
        actors: maximum number of actors; by default as many as fit in the cluster.
        cpus, gpus: of each actor.
        on_shard: called after each shard with the rows done, all rows and the shard's result.

    Raises:
        ConfigError: ray is not installed, or the output has the scores of another job.
        ClusterError: the cluster cannot be reached.
        DataError: a row cannot be scored; finished parts stay.
    """
    with cluster() as ray:
        shards = _plan_shards(ray, job)
        total, done, counts = sum(shard.rows for shard in shards), 0, ScoreCounts()
        limit = min(actors or worker_slots(ray, cpus, gpus), len(shards))
        for result in _run(job, open_scorer, shards, limit, cpus, gpus):
            if result.error is not None:
                kind, message = result.error
                raise getattr(errors, kind)(message)
            done += shards[result.number].rows
            tasks = Counter(counts.tasks) + Counter(result.counts.tasks)
            queries, responses = counts.queries + result.counts.queries, counts.responses + result.counts.responses
            counts = ScoreCounts(queries=queries, responses=responses, tasks=dict(sorted(tasks.items())))
            on_shard(done, total, result)
    parts = [
        {"part": _part(number), "file": shard.file, "first": shard.first, "rows": shard.rows}
        for number, shard in enumerate(shards)
    ]
    manifest = {"schema": 1, "scorer": job.scorer, "input": job.input, **counts.model_dump()}
    manifest |= {"left_out": total - counts.queries, "parts": parts}
    job.write("manifest.json", json.dumps(manifest, ensure_ascii=False))
    return manifest


def _part(number: int) -> str:
    return f"part-{number:05}.parquet"


class _Plan(BaseModel):
    job: ScoringJob
    shards: tuple[Shard, ...]
    files: dict[str, str]


def _plan_shards(ray: Any, job: ScoringJob) -> Sequence[Shard]:
    """Return the shards of `plan.json` if the files are unchanged, or split each file in a task of its own."""
    path, now = job.file("plan.json"), {file: version(file) for file in matching(job.input)}
    described = job.model_copy(update={"output": ""})  # which may have moved
    if not exists(path):
        split = ray.remote(shards_of)
        by_file = ray.get([split.remote(file, job.shard_rows) for file in now])
        shards = tuple(shard for file_shards in by_file for shard in file_shards)
        job.write("plan.json", _Plan(job=described, shards=shards, files=now).model_dump_json())
        return shards
    with open_binary(path) as file:
        plan = _Plan.model_validate_json(file.read())
    folder, hint = path.removesuffix("/plan.json"), "choose another --output, or delete it"
    if plan.job != described:
        raise ConfigError(f"{folder}: has the scores of another job; {hint}")
    for file in sorted(plan.files.keys() | now.keys()):
        was, current = (files.get(file, "not part of the input") for files in (plan.files, now))
        if was != current:
            change = f"has changed since {folder} was started (was: {was}; is: {current})"
            raise ConfigError(f"{file}: {change}; {hint}")
    return plan.shards


def _run(
    job: ScoringJob, open_scorer: OpenScorer, shards: Sequence[Shard], actors: int, cpus: float, gpus: float
) -> Iterator[ShardResult]:
    """Yield the shards' results as they finish. Ray Data restarts lost actors and gives them their shards again."""
    import ray.data as ray_data

    ray_data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"number": number, "shard": shard.model_dump_json()} for number, shard in enumerate(shards)]
    dataset = ray_data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(job, open_scorer),
        batch_size=1,
        compute=ray_data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=cpus,
        num_gpus=gpus,
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
        job, part, left_out = self._job, self._job.file(_part(number)), list[str]()
        on_bad = (lambda error: left_out.append(str(error))) if job.skip_bad else None
        try:
            if exists(part):
                remove_leftovers_at(part)  # a writer killed after its last step leaves its lock
            else:
                self._scorer = self._scorer or self._open()
                reading: Any = {"format": job.format, "columns": job.columns, "on_bad": on_bad}
                queries = read_queries(shard.file, rows=shard.read(), **reading)
                with open_output(part, job.best) as write:
                    for row in self._scorer.rows(queries, on_bad):
                        write([row])
        except DmoermError as error:
            return ShardResult(number=number, error=(type(error).__name__, str(error)))
        counts = ScoreCounts()
        with open_binary(part) as file:
            columns = parquet.read_table(file, columns=["task", "rewards"]).to_pydict()
        for task, rewards in zip(columns["task"], columns["rewards"], strict=True):
            counts.add(task, len(rewards))
        return ShardResult(number=number, left_out=tuple(left_out), counts=counts)
