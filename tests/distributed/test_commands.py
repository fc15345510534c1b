"""The commands with `--engine ray`, on a cluster that they start and end themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet as parquet
import pytest
from tiny import HEADS, tiny_groups

from dmoerm.config import Config, dump_config

pytest.importorskip("ray", reason="ray is not installed; run: make install")
pytestmark = pytest.mark.slow

SMALL = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "200000000", "OMP_NUM_THREADS": "1"}


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    main = [sys.executable, "-c", "from dmoerm.cli import main; main()"]
    words = [*main, *map(str, arguments)]
    done = subprocess.run(words, env={**os.environ, **SMALL}, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def test_train_on_ray_leaves_a_run(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config, file = tiny_config(**HEADS), tmp_path / "mine.yaml"
    file.write_text(dump_config(config))
    run("train", file, "--engine", "ray")
    assert (Path(config.output) / "report.html").exists()
    steps = json.loads((Path(config.output) / "results.json").read_text())["time"]
    assert {"router", "phase0", "phase1", "phase2", "phase3"} <= steps.keys()


@pytest.mark.parametrize("more", [(), ("--best",)])
def test_both_engines_score_to_the_same_rows(trained_run: Any, tmp_path: Path, more: tuple[str, ...]) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, group in enumerate(tiny_groups(6)):
        row = {"id": f"row {number}", **group.model_dump(mode="json", include={"prompt", "responses"})}
        (folder / f"{number:02}.jsonl").write_text(json.dumps(row) + "\n")
    files = ("--input", folder / "*.jsonl", "--json", tmp_path / "found.json")
    command_line = ("score", trained_run.folder, *files, *more)
    run(*command_line, "--output", tmp_path / "here.parquet")
    here = json.loads((tmp_path / "found.json").read_text())
    on_ray = ("--output", tmp_path / "there", "--engine", "ray")
    run(*command_line, *on_ray)
    there = json.loads((tmp_path / "found.json").read_text())
    kept = ("model", "queries", "responses", "tasks", "left_out")
    assert {name: here[name] for name in kept} == {name: there[name] for name in kept}
    parts = [part["part"] for part in json.loads((tmp_path / "there" / "manifest.json").read_text())["parts"]]
    tables = [parquet.read_table(tmp_path / "there" / part) for part in parts]
    local = parquet.read_table(tmp_path / "here.parquet")
    assert {table.schema for table in tables} == {local.schema}
    rows = [row for table in tables for row in table.to_pylist()]
    for result, expected in zip(rows, local.to_pylist(), strict=True):
        assert result["id"] == expected["id"]
        assert result["rewards"] == pytest.approx(expected["rewards"], abs=1e-4)
        assert result.get("chosen") == expected.get("chosen")
    done = run(*command_line, "--weight", "empathy=2", *on_ray, code=1)
    assert "scores of another job" in done.stderr


def test_rows_and_scores_may_lie_in_an_object_store(trained_run: Any, bucket: str) -> None:
    store = fsspec.filesystem("s3")
    for number, group in enumerate(tiny_groups(6)):
        row = {"id": f"row {number}", **group.model_dump(mode="json", include={"prompt", "responses"})}
        with store.open(f"{bucket}/rows/{number:02}.parquet", "wb") as file:
            parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    command_line = ("score", trained_run.folder, "--input", f"{bucket}/rows/*.parquet")
    run(*command_line, "--output", f"{bucket}/here.parquet")
    run(*command_line, "--output", f"{bucket}/there", "--engine", "ray")
    expected = rows_of(store, f"{bucket}/here.parquet")
    result = [row for part in manifest(store, f"{bucket}/there") for row in rows_of(store, f"{bucket}/there/{part}")]
    assert [row["id"] for row in result] == [row["id"] for row in expected] == [f"row {i}" for i in range(12)]
    for item, other in zip(result, expected, strict=True):
        assert item["rewards"] == pytest.approx(other["rewards"], abs=1e-4)


def rows_of(store: Any, path: str) -> list[dict[str, Any]]:
    with store.open(path, "rb") as file:
        return parquet.read_table(file).to_pylist()


def manifest(store: Any, path: str) -> list[str]:
    with store.open(f"{path}/manifest.json", "rb") as file:
        return [part["part"] for part in json.load(file)["parts"]]


def test_ray_writes_a_folder(tmp_path: Path) -> None:
    done = run("score", "m", "--input", "x.jsonl", "--output", tmp_path / "y.jsonl", "--engine", "ray", code=1)
    assert "give a folder for the parts" in done.stderr
