"""A real model as the judge: `transformers serve` with the bundled SmolLM2, whose verdicts are near chance."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.data.readers import read_groups
from dmoerm.labels import PROBABILITIES, Outcome, read_labels
from dmoerm.taxonomy import draft_taxonomy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def causal(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of SmolLM2 with its (tied) vocabulary head, which the backbone has no need of."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(tmp_path_factory.mktemp("causal"))
    AutoModelForCausalLM.from_pretrained(smollm2, tie_word_embeddings=True).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(causal: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with SmolLM2."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [Path(sys.executable).with_name("transformers"), "serve", causal, "--device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=output,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"no server after {seconds} s: {log.read_text()[-2000:]}")


def invoke(*arguments: object):
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(a) for a in arguments])


def test_a_tiny_judge_labels_human_data(served: str, causal: str, human_data: Path, tmp_path: Path) -> None:
    """All questions end in one outcome each, and the report stands beside people's grades, ties and gaps among them."""
    rows, taxonomy, out = tmp_path / "data.jsonl", tmp_path / "taxonomy.yaml", tmp_path / "labels.parquet"
    groups = read_groups(human_data / "topical_chat.jsonl").groups[:3]
    first = groups[0].capabilities["coherence"]
    gaps = {**groups[0].capabilities, "coherence": (None, *first[1:])}
    groups[0] = groups[0].model_copy(update={"capabilities": gaps})
    rows.write_text("".join(group.model_dump_json(exclude={"judge_labels"}) + "\n" for group in groups))
    taxonomy.write_text(draft_taxonomy(groups, "human").to_yaml())
    options = ("--taxonomy", taxonomy, "--base-url", served, "--model", causal, "--out", out)
    few = ("--limit", 2, "--concurrency", 2)
    few += ("--request-field", "response_format=null", "--request-field", "logprobs=null")
    labeled = invoke("label", rows, *options, *few)
    labels = read_labels(out)
    usable = [label for label in labels if {label.given, label.swapped} & set(PROBABILITIES)]
    assert labeled.exit_code == (0 if usable else 1), labeled.output
    assert ("none of 20 questions has a usable answer" in labeled.output) == (not usable)
    assert len(labels) == 2 * 5
    outcomes = {outcome for label in labels for outcome in (label.given, label.swapped)}
    assert not {Outcome.OPEN, Outcome.FAILED, Outcome.REFUSED} & outcomes
    assert all(label.prompt_tokens > 100 for label in labels)
    report = invoke("label", "report", out, "--data", rows, "--json", tmp_path / "q.json")
    assert report.exit_code == 0, report.output
    assert "unparseable" in report.output
    results = json.loads((tmp_path / "q.json").read_text())["qualities"]
    assert any(row["people"] for row in results)
    assert {row["capability"] for row in results} >= set(groups[0].capabilities)
