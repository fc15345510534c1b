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

ON_RAY = ("--engine", "ray")
TEXTS = [group.model_dump(mode="json", include={"prompt", "responses"}) for group in tiny_groups(6)]
ROWS = [{"id": f"row {number}", **texts} for number, texts in enumerate(TEXTS)]
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
    (tmp_path / "rows").mkdir()
    for number, row in enumerate(ROWS):
        (tmp_path / "rows" / f"{number:02}.jsonl").write_text(json.dumps(row) + "\n")
    files = ("--input", tmp_path / "rows" / "*.jsonl", "--json", tmp_path / "found.json")
    command_line, on_ray = ("score", trained_run.folder, *files, *more), ("--output", tmp_path / "there", *ON_RAY)
    summaries = []
    for options in (("--output", tmp_path / "here.parquet"), on_ray):
        run(*command_line, *options)
        summary = json.loads((tmp_path / "found.json").read_text())
        summaries.append({name: summary[name] for name in ("model", "queries", "responses", "tasks", "left_out")})
    assert summaries[0] == summaries[1]
    assert_same_rows(fsspec.filesystem("file"), str(tmp_path))
    done = run(*command_line, "--weight", "empathy=2", *on_ray, code=1)
    assert "scores of another job" in done.stderr


def assert_same_rows(store: Any, folder: str) -> None:
    """The folder `there` has the rows of `here.parquet`."""

    def table(name: str) -> pyarrow.Table:
        with store.open(f"{folder}/{name}", "rb") as file:
            return parquet.read_table(file)

    with store.open(f"{folder}/there/manifest.json", "rb") as file:
        tables, local = [table(f"there/{part['part']}") for part in json.load(file)["parts"]], table("here.parquet")
    assert {part.schema for part in tables} == {local.schema}
    rows, expected = [row for part in tables for row in part.to_pylist()], local.to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in expected] == [row["id"] for row in ROWS]
    for row, other in zip(rows, expected, strict=True):
        assert row["rewards"] == pytest.approx(other["rewards"], abs=1e-4)
        assert row.get("chosen") == other.get("chosen")


def test_rows_and_scores_may_lie_in_an_object_store(trained_run: Any, bucket: str) -> None:
    store = fsspec.filesystem("s3")
    for number, row in enumerate(ROWS):
        with store.open(f"{bucket}/rows/{number:02}.parquet", "wb") as file:
            parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    command_line = ("score", trained_run.folder, "--input", f"{bucket}/rows/*.parquet")
    run(*command_line, "--output", f"{bucket}/here.parquet")
    run(*command_line, "--output", f"{bucket}/there", *ON_RAY)
    assert_same_rows(store, bucket)


def test_ray_writes_a_folder(tmp_path: Path) -> None:
    done = run("score", "m", "--input", "x.jsonl", "--output", tmp_path / "y.jsonl", "--engine", "ray", code=1)
    assert "give a folder for the parts" in done.stderr
