"""Batch scoring on a cluster gives what the stream gives, each row once, whatever is killed meanwhile."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    texts = [(str(group.prompt)[:40], [text[:40] for text in group.responses[:2]]) for group in tiny_groups(12)]
    rows = [(i, *texts[i % len(texts)]) for i in range(count)]
    lines = [json.dumps({"id": f"row {i}", "prompt": f"{i} {prompt}", "responses": r}) for i, prompt, r in rows]
    folder.mkdir()
    for number in range(files):
        chosen = lines[number * count // files : (number + 1) * count // files]
        (folder / f"{number}.jsonl").write_text("\n\n".join(chosen) + "\n")
    return str(folder / "*.jsonl")


def assert_streamed(output: Path, model: str, pattern: str) -> None:
    """The parts, in order, have the rows of the streaming path."""
    manifest = json.loads((output / "manifest.json").read_text())
    tables = [parquet.read_table(output / part["part"]) for part in manifest["parts"]]
    actual = [row for table in tables for row in table.to_pylist(maps_as_pydicts="strict")]
    expected = [row for file in matching(pattern) for row in open_model(model).rows(read_queries(file))]
    assert [row["id"] for row in actual] == [row["id"] for row in expected]
    for item, other in zip(actual, expected, strict=True):
        assert list(item) == list(other)
        assert item["task"] == other["task"]
        assert item["rewards"] == pytest.approx(other["rewards"], abs=1e-4)
        assert item["route"] == pytest.approx(other["route"], abs=1e-4)
        assert item["capabilities"].keys() == other["capabilities"].keys()


def job(pattern: str, output: Path, **settings: Any) -> Any:
    return ScoringJob(scorer="tiny", input=pattern, output=str(output), **settings)


def score_during(kill: Callable[[], object], scoring_job: Any, model: str) -> dict[str, Any]:
    """Score while another thread kills something; return the manifest."""
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        manifest = score_on_ray(scoring_job, functools.partial(open_model, model))
        killed.result()
    return manifest


@pytest.fixture
def model(trained_run: Any) -> str:
    return str(trained_run.folder / "model")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2_000, 20_000])
def test_a_killed_actor_costs_no_row_and_doubles_none(nodes: Nodes, model: str, tmp_path: Path, count: int) -> None:
    output, pattern = tmp_path / "out", write_inputs(tmp_path / "rows", count)

    def kill() -> None:
        wait_until(lambda: len(list(output.glob("part-*"))) >= 4, "no part")
        os.kill(wait_until(lambda: nodes.running(ACTOR), "no actor at work")[0], signal.SIGKILL)

    manifest = score_during(kill, job(pattern, output, shard_rows=100), model)
    assert (manifest["queries"], manifest["left_out"]) == (count, 0)
    parts = {f"part-{i:05}.parquet" for i in range(count // 100)}
    assert {file.name for file in output.iterdir()} == parts | {"plan.json", "manifest.json"}
    assert_streamed(output, model, pattern)


DRIVER = """
import functools, ray
from dmoerm.cli.score import open_model
from dmoerm.distributed.batch_scoring import ScoringJob, score_on_ray

ray.init(address={address!r}, log_to_driver=False)
job = ScoringJob(scorer="tiny", input={pattern!r}, output={output!r}, shard_rows=50)
score_on_ray(job, functools.partial(open_model, {model!r}))
"""


@pytest.mark.slow
def test_a_killed_driver_costs_no_finished_part(nodes: Nodes, model: str, tmp_path: Path) -> None:
    output, pattern = tmp_path / "out", write_inputs(tmp_path / "rows", 2_000)
    code = DRIVER.format(address=nodes.address, pattern=pattern, output=str(output), model=model)
    driver = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: len(list(output.glob("part-*"))) >= 3 or driver.poll(), "no part")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not nodes.running("MapWorker"), "the killed driver's actors go on")
    assert not (output / "manifest.json").exists()
    before = {part: part.stat().st_mtime_ns for part in output.glob("part-*")}
    score_on_ray(job(pattern, output, shard_rows=50), functools.partial(open_model, model))
    assert {part: part.stat().st_mtime_ns for part in before} == before
    assert_streamed(output, model, pattern)


@pytest.mark.slow
def test_a_killed_node_costs_no_row(nodes: Nodes, model: str, tmp_path: Path) -> None:
    """The one that is left has room for one actor, and takes over what the other one had."""
    output, pattern = tmp_path / "out", write_inputs(tmp_path / "rows", 12_000)  # until a second actor begins

    def kill() -> None:
        wait_until(lambda: nodes.running(ACTOR, nodes.second), "no actor on the second node")
        nodes.kill(nodes.second)

    score_during(kill, job(pattern, output, shard_rows=50), model)
    nodes.second = nodes.add()
    assert_streamed(output, model, pattern)


@pytest.mark.slow
def test_bad_rows_end_the_job_or_are_left_out(nodes: Nodes, model: str, tmp_path: Path) -> None:
    pattern = write_inputs(tmp_path / "rows", 40, files=1)
    with (tmp_path / "rows" / "0.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": " ", "responses": ["a"]}) + "\n")
    opened = functools.partial(open_model, model)
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


def rewrite(folder: Path) -> None:
    """Same size, another time."""
    (folder / "1.jsonl").write_text((folder / "1.jsonl").read_text().replace("row", "ROW"))
    os.utime(folder / "1.jsonl", (1, 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "longer": lambda folder: (folder / "1.jsonl").write_text((folder / "1.jsonl").read_text() * 2),
    "same size": rewrite,
    "one more": lambda folder: shutil.copy(folder / "0.jsonl", folder / "1a.jsonl"),
    "one less": lambda folder: (folder / "1.jsonl").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_what_was_begun_goes_on_with_the_same_files_alone(tmp_path: Path, prefix: str, change: str) -> None:
    scoring_job = job(prefix + write_inputs(tmp_path / "rows", 12, files=3), tmp_path / "out")
    shards = _plan_shards(Here, scoring_job)
    assert _plan_shards(Here, scoring_job) == shards
    CHANGES[change](tmp_path / "rows")
    with pytest.raises(ConfigError, match=r"rows/1a?\.jsonl: has changed since .*out was started"):
        _plan_shards(Here, scoring_job)
