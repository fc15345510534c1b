"""Batch scoring on Ray Data: files in pieces, a pool of actors that each hold a scorer, one part file a piece.

    output/plan.json            the pieces, and what scores them; a later run must ask for the same
    output/part-00000.parquet   a piece's rows, in its order; complete or not there
    output/manifest.json        written last: the parts in the input's order, and the totals

A part that is there is not scored again. The rows are those that the same scorer gives in a stream on one machine.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from pydantic import BaseModel

from .. import errors
from ..data.readers import queries_of
from ..errors import ConfigError, DmoermError
from ..io.storage import complete_at, exists, matching, open_binary, version
from ..scoring.output import open_output
from ..scoring.rows import RowScorer, Tally, written_rows
from ..scoring.shards import Shard, shard_rows, shards_of
from .cluster import cluster, worker_slots

OpenScorer = Callable[[], RowScorer]
"""Loads what scores; called once in each actor, so it must travel: a function of a module, or a partial of one."""


@dataclass(frozen=True)
class Job:
    """What is scored, and where to.

    Attributes:
        scorer: says what scores, for `plan.json`.
        input: a file, a pattern or a URL; files that `dmoerm.data.readers` reads.
        output: the parts' folder or URL.
        format: the rows' format.
        skip_bad: leave out rows that cannot be scored.
        shard_rows: most rows of a part.
        best: each row also says which response has the highest reward.
    """

    scorer: str
    input: str
    output: str
    format: str = "auto"
    skip_bad: bool = False
    shard_rows: int = 1000
    best: bool = False

    def part(self, number: int) -> str:
        """The file of the piece of this number."""
        return f"{self.output.rstrip('/')}/part-{number:05}.parquet"


@dataclass(frozen=True)
class Pool:
    """The actors.

    Attributes:
        actors: most of them; None: as many as the cluster has room for.
        cpus, gpus: of each.
    """

    actors: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


class Ended(BaseModel):
    """How a piece ended.

    Attributes:
        left_out: why rows were left out, where they were scored just now.
        error: kind and message of what ended it.
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
    shards: tuple[Shard, ...] = ()
    files: dict[str, str] = {}


def score_on_ray(
    job: Job,
    open_scorer: OpenScorer,
    pool: Pool | None = None,
    told: Callable[[int, int, Ended], None] = lambda *_: None,
) -> dict[str, Any]:
    """Scores what is not scored yet; returns the manifest.

    Args:
        told: is called with the rows done, all rows, and how a piece ended, for each that ends.

    Raises:
        ConfigError: ray is not installed, or the output holds the scores of something else.
        ClusterError: the cluster cannot be reached.
        DataError: a row that cannot be scored; the parts that are done stay.
    """
    with cluster() as ray:
        shards = _planned(ray, job)
        total, done, tally = sum(shard.rows for shard in shards), 0, Tally()
        for ended in _run(ray, job, open_scorer, shards, pool or Pool()):
            if ended.error is not None:
                kind, message = ended.error
                raise getattr(errors, kind)(message)
            done += shards[ended.number].rows
            tally.add(Tally(ended.queries, ended.responses, Counter(ended.tasks)))
            told(done, total, ended)
    return _write_manifest(job, shards, tally)


def _planned(ray: Any, job: Job) -> Sequence[Shard]:
    """The pieces: those of `plan.json` if the files are as they were, or cut now, each file by a task of its own."""
    place = f"{job.output.rstrip('/')}/plan.json"
    asked = _Plan(**{name: getattr(job, name) for name in _Plan.model_fields if hasattr(job, name)})
    files = {file: version(file) for file in matching(job.input)}
    if exists(place):
        with open_binary(place) as file:
            found = _Plan.model_validate_json(file.read())
        if found.model_copy(update={"shards": (), "files": {}}) != asked:
            raise ConfigError(f"{job.output}: holds the scores of another job; set another --output, or delete it")
        _unchanged(job, found.files, files)
        return found.shards
    cut = ray.remote(shards_of)
    pieces = ray.get([cut.remote(file, job.shard_rows) for file in files])
    shards = tuple(shard for file in pieces for shard in file)
    _write(place, asked.model_copy(update={"shards": shards, "files": files}).model_dump_json())
    return shards


def _unchanged(job: Job, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises `ConfigError` where the input is not what the pieces were cut from."""
    for file in sorted(then.keys() | now.keys()):
        was, found = then.get(file, "not among the input"), now.get(file, "not among the input")
        if was != found:
            raise ConfigError(
                f"{file}: has changed since {job.output} was begun (was: {was}; is: {found}); set another --output, "
                "or delete it"
            )


def _run(ray: Any, job: Job, open_scorer: OpenScorer, shards: Sequence[Shard], pool: Pool) -> Iterator[Ended]:
    """How each piece ended, as they end. Ray Data starts lost actors again and gives them their pieces again."""
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
        yield Ended.model_validate_json(row["ended"])


class _Actor:
    """Holds a scorer, loaded once, and writes one part for each piece that it is given."""

    def __init__(self, job: Job, open_scorer: OpenScorer) -> None:
        self._job, self._open = job, open_scorer
        self._scorer: RowScorer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        pairs = zip(batch["number"], batch["shard"], strict=True)
        ended = [self._ended(int(number), Shard.model_validate_json(str(shard))) for number, shard in pairs]
        return {"ended": [one.model_dump_json() for one in ended]}

    def _ended(self, number: int, shard: Shard) -> Ended:
        part, left_out = self._job.part(number), []
        try:
            if not exists(part):
                self._score(part, shard, left_out)
            tally = _tally_of(part)
        except DmoermError as error:
            return Ended(number=number, error=(type(error).__name__, str(error)))
        return Ended(number=number, left_out=tuple(left_out), **tally.figures())

    def _score(self, part: str, shard: Shard, left_out: list[str]) -> None:
        self._scorer = self._scorer or self._open()
        on_bad = (lambda error: left_out.append(str(error))) if self._job.skip_bad else None
        queries = queries_of(shard_rows(shard), shard.file, format=self._job.format, on_bad=on_bad)
        with open_output(part, self._job.best) as write:
            for row in written_rows(self._scorer, queries, on_bad, self._job.best):
                write([row])


def _tally_of(part: str) -> Tally:
    tally = Tally()
    with open_binary(part) as file:
        columns = parquet.read_table(file, columns=["task", "rewards"]).to_pydict()
    for task, rewards in zip(columns["task"], columns["rewards"], strict=True):
        tally.take(task, len(rewards))
    return tally


def _write_manifest(job: Job, shards: Sequence[Shard], tally: Tally) -> dict[str, Any]:
    names = [Path(job.part(number)).name for number in range(len(shards))]
    parts = [
        {"part": name, "file": shard.file, "first": shard.first, "rows": shard.rows}
        for name, shard in zip(names, shards, strict=True)
    ]
    left_out = sum(shard.rows for shard in shards) - tally.queries
    manifest = {"schema": 1, "scorer": job.scorer, "input": job.input, **tally.figures(), "left_out": left_out}
    manifest["parts"] = parts
    _write(f"{job.output.rstrip('/')}/manifest.json", json.dumps(manifest, ensure_ascii=False))
    return manifest


def _write(place: str, text: str) -> None:
    with complete_at(place) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
