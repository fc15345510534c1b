"""Batch scoring on a cluster gives what the stream gives, each row once, whatever is killed meanwhile."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from tiny import tiny_groups

from dmoerm.cli.score import open_model
from dmoerm.data.readers import read_queries
from dmoerm.distributed.batch_scoring import ScoringJob, ShardResult, _plan_shards, score_on_ray
from dmoerm.errors import ConfigError, DataError
from dmoerm.io.storage import matching

from .conftest import Nodes, wait_until

pytest.importorskip("ray", reason="ray is not installed; run: make install")

ACTOR = "MapWorker(MapBatches(_Actor)).submit"
"""A process that scores, as Ray names it."""


def write_inputs(folder: Path, count: int, files: int = 4) -> str:
    """`count` short rows over some files, blank lines among them; the files' pattern."""
    texts = [(group.prompt, list(group.responses)[:2]) for group in tiny_groups(12)]
    folder.mkdir()
    for number in range(files):
        rows = range(number * count // files, (number + 1) * count // files)
        actual = [texts[i % len(texts)] for i in rows]
        lines = [
            json.dumps(
                {"id": f"row {i}", "prompt": f"{i} {str(prompt)[:40]}", "responses": [r[:40] for r in responses]}
            )
            for i, (prompt, responses) in zip(rows, actual, strict=True)
        ]
        (folder / f"{number}.jsonl").write_text("\n\n".join(lines) + "\n")
    return str(folder / "*.jsonl")


def streamed(model: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """The rows of the streaming path."""
    for file in matching(pattern):
        yield from open_model(str(model)).rows(read_queries(file))


def written(output: Path) -> list[dict[str, Any]]:
    """The rows of all parts, in order."""
    manifest = json.loads((output / "manifest.json").read_text())
    tables = [parquet.read_table(output / part["part"]) for part in manifest["parts"]]
    return [row for table in tables for row in table.to_pylist(maps_as_pydicts="strict")]


def assert_same_rows(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["id"] for row in actual] == [row["id"] for row in expected]
    for item, other in zip(actual, expected, strict=True):
        assert list(item) == list(other)
        assert item["task"] == other["task"]
        assert item["rewards"] == pytest.approx(other["rewards"], abs=1e-4)
        assert item["route"] == pytest.approx(other["route"], abs=1e-4)
        assert item["capabilities"].keys() == other["capabilities"].keys()


def job(pattern: str, output: Path, **settings: Any) -> Any:
    return ScoringJob(scorer="tiny", input=pattern, output=str(output), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2_000, 20_000])
def test_a_killed_actor_costs_no_row_and_doubles_none(
    nodes: Nodes, trained_run: Any, tmp_path: Path, count: int
) -> None:
    model, output = trained_run.folder / "model", tmp_path / "out"
    pattern = write_inputs(tmp_path / "rows", count)
    killed: list[int] = []

    def kill() -> None:
        wait_until(lambda: len(list(output.glob("part-*"))) >= 4, "no part")
        killed.extend(wait_until(lambda: nodes.running(ACTOR), "no actor at work"))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    manifest = score_on_ray(job(pattern, output, shard_rows=100), functools.partial(open_model, str(model)))
    killer.join()
    assert killed
    assert (manifest["queries"], manifest["left_out"]) == (count, 0)
    parts = {f"part-{i:05}.parquet" for i in range(count // 100)}
    assert {file.name for file in output.iterdir()} == parts | {"plan.json", "manifest.json"}
    assert_same_rows(written(output), list(streamed(model, pattern)))


DRIVER = """
import functools, ray
from dmoerm.cli.score import open_model
from dmoerm.distributed.batch_scoring import ScoringJob, score_on_ray

ray.init(address={address!r}, log_to_driver=False)
job = ScoringJob(scorer="tiny", input={pattern!r}, output={output!r}, shard_rows=50)
score_on_ray(job, functools.partial(open_model, {model!r}))
"""


@pytest.mark.slow
def test_a_killed_driver_costs_no_finished_part(nodes: Nodes, trained_run: Any, tmp_path: Path) -> None:
    model, output = trained_run.folder / "model", tmp_path / "out"
    pattern = write_inputs(tmp_path / "rows", 2_000)
    code = DRIVER.format(address=nodes.address, pattern=pattern, output=str(output), model=str(model))
    driver = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: len(list(output.glob("part-*"))) >= 3 or driver.poll(), "no part")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not nodes.running("MapWorker"), "the killed driver's actors go on")
    assert not (output / "manifest.json").exists()
    before = {part: part.stat().st_mtime_ns for part in output.glob("part-*")}
    score_on_ray(job(pattern, output, shard_rows=50), functools.partial(open_model, str(model)))
    assert {part: part.stat().st_mtime_ns for part in before} == before
    assert_same_rows(written(output), list(streamed(model, pattern)))


@pytest.mark.slow
def test_a_killed_node_costs_no_row(nodes: Nodes, trained_run: Any, tmp_path: Path) -> None:
    """The one that is left has room for one actor, and takes over what the other one had."""
    model, output = trained_run.folder / "model", tmp_path / "out"
    pattern = write_inputs(tmp_path / "rows", 12_000)  # long enough for a second actor to begin
    killed: list[Any] = []

    def kill() -> None:
        wait_until(lambda: nodes.running(ACTOR, nodes.second), "no actor on the second node")
        nodes.kill(nodes.second)
        killed.append(nodes.second)

    killer = threading.Thread(target=kill)
    killer.start()
    score_on_ray(job(pattern, output, shard_rows=50), functools.partial(open_model, str(model)))
    killer.join()
    assert killed
    nodes.second = nodes.add()
    assert_same_rows(written(output), list(streamed(model, pattern)))


@pytest.mark.slow
def test_bad_rows_end_the_job_or_are_left_out(nodes: Nodes, trained_run: Any, tmp_path: Path) -> None:
    pattern = write_inputs(tmp_path / "rows", 40, files=1)
    with (tmp_path / "rows" / "0.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": " ", "responses": ["a"]}) + "\n")
    opened = functools.partial(open_model, str(trained_run.folder / "model"))
    with pytest.raises(DataError, match=r"0\.jsonl:80: prompt: is empty"):
        score_on_ray(job(pattern, tmp_path / "out", shard_rows=20), opened)
    with pytest.raises(ConfigError, match="scores of another job"):
        score_on_ray(job(pattern, tmp_path / "out", shard_rows=20, skip_bad=True), opened)
    results: list[ShardResult] = []
    skipping = job(pattern, tmp_path / "other", shard_rows=20, skip_bad=True)
    manifest = score_on_ray(skipping, opened, on_shard=lambda done, total, result: results.append(result))
    assert (manifest["queries"], manifest["left_out"]) == (40, 1)
    (reason,) = [reason for result in results for reason in result.left_out]
    assert "0.jsonl:80" in reason


class Here:
    """In Ray's place: a task runs at once, in this process."""

    get = staticmethod(list)

    @staticmethod
    def remote(function: Any) -> Any:
        return types.SimpleNamespace(remote=function)


def other_text(folder: Path) -> None:
    file = folder / "1.jsonl"
    file.write_text(file.read_text() * 2)


def same_size(folder: Path) -> None:
    file = folder / "1.jsonl"
    file.write_text(file.read_text().replace("row", "ROW"))
    os.utime(file, (1, 1))


def one_more(folder: Path) -> None:
    shutil.copy(folder / "0.jsonl", folder / "1a.jsonl")


def one_less(folder: Path) -> None:
    (folder / "1.jsonl").unlink()


@pytest.mark.parametrize("change", [other_text, same_size, one_more, one_less])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_what_was_begun_goes_on_with_the_same_files_alone(
    tmp_path: Path, prefix: str, change: Callable[[Path], None]
) -> None:
    scoring_job = job(prefix + write_inputs(tmp_path / "rows", 12, files=3), tmp_path / "out")
    shards = _plan_shards(Here, scoring_job)
    assert _plan_shards(Here, scoring_job) == shards
    change(tmp_path / "rows")
    with pytest.raises(ConfigError, match=r"rows/1a?\.jsonl: has changed since .*out was started"):
        _plan_shards(Here, scoring_job)
