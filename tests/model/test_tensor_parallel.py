"""Two processes that divide a model give the scores of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from running import free_port, wait_until_ready
from tiny import make_model, make_tiny_config, write_backbone

from dmoerm.errors import ConfigError
from dmoerm.model import DMoERM, tensor_parallel

ROWS = [
    {"prompt": "How are you?", "responses": ["Fine, and you?", "No.", "x " * 20]},
    {"prompt": "What is 2 + 2?", "responses": ["4", "Five."], "task": "objective_qa"},
]


def score(folder: Path, name: str, *launcher: str) -> list[dict[str, Any]]:
    """Score `ROWS` by the command line, by one process or as the launcher says."""
    command = [sys.executable, *launcher, "-m", "dmoerm.cli", "score", str(folder / "model")]
    files = ["--input", str(folder / "rows.jsonl"), "--output", str(folder / name)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *files], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("base", ["full", "frozen"])
def test_two_processes_score_as_one(tmp_path: Path, kind: str, base: str) -> None:
    make_model(make_tiny_config(write_backbone(tmp_path / "backbone", kind), tmp_path, base=base)).save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    one = score(tmp_path, "one.jsonl")
    two = score(tmp_path, "two.jsonl", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for row, other in zip(one, two, strict=True):
        assert row["task"] == other["task"]
        assert other["rewards"] == pytest.approx(row["rewards"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_serve_as_one_and_end_together(tmp_path: Path) -> None:
    config = make_tiny_config(write_backbone(tmp_path / "backbone", "llama"), tmp_path)
    make_model(config).save_pretrained(tmp_path / "model")
    model = DMoERM.from_pretrained(tmp_path / "model")
    expected = [model.score(row["prompt"], row["responses"], task=row.get("task")) for row in ROWS]
    port = free_port()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "dmoerm.cli", "serve", str(tmp_path / "model"), "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, env=environment) as process:
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            for _ in range(2):
                answer = httpx2.post(f"http://127.0.0.1:{port}/v1/score", json={"items": ROWS}, timeout=60)
                assert answer.status_code == 200, answer.text
                for item, scores in zip(answer.json()["items"], expected, strict=True):
                    found = [score["reward"] for score in item["scores"]]
                    assert found == pytest.approx([score.reward for score in scores], abs=1e-4)
        finally:
            workers = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(60)
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=5)[1]


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("gpt_neox", 2, "'gpt_neox' cannot be divided"),
        ("llama", 3, "num_attention_heads is 4, which 3 processes cannot divide"),
        ("llama", 4, "num_key_value_heads is 2, which 4 processes cannot divide"),
    ],
)
def test_a_backbone_that_cannot_be_divided_is_refused(tmp_path: Path, kind: str, count: int, message: str) -> None:
    from transformers import AutoConfig, AutoModel

    write_backbone(tmp_path, kind)
    model = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))
    with pytest.raises(ConfigError, match=message):
        tensor_parallel._plan(model, count)
