"""A real model as the judge: `transformers serve` with the bundled SmolLM2, whose verdicts are near chance."""

from __future__ import annotations

import contextlib
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
from tiny import tiny_groups

from dmoerm.errors import LabelingError
from dmoerm.labeling.questions import Endpoint
from dmoerm.labeling.runner import collect_labels
from dmoerm.labeling.store import AnswerStore
from dmoerm.labels import PROBABILITIES, Outcome

from .question_data import ask, questions_on

pytestmark = pytest.mark.slow


@pytest.fixture
def served(smollm2: str, tmp_path: Path) -> Iterator[Endpoint]:
    """A server with SmolLM2 and its (tied) vocabulary head, which the backbone has no need of."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(tmp_path / "causal")
    AutoModelForCausalLM.from_pretrained(smollm2, tie_word_embeddings=True).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu"]
    log, deadline = tmp_path / "log", time.monotonic() + 180
    with log.open("w") as output:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        arguments = [*command, "--host", "127.0.0.1", "--port", port]
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment)
    try:
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        fields = {"response_format": None, "logprobs": None}
        yield Endpoint(f"http://127.0.0.1:{port}/v1", folder, request_fields=fields)
    finally:
        process.terminate()
        process.wait(30)


def test_a_tiny_judge_labels_pairs(served: Endpoint, tmp_path: Path) -> None:
    """All questions end in one outcome each, with their tokens; whether any is readable is chance."""
    questions = questions_on(tiny_groups()[:3], served, overall=True)
    path = tmp_path / "calls.sqlite"
    with contextlib.suppress(LabelingError):  # none of the questions has a usable answer
        ask(questions, served, path, concurrency=2)
    labels = collect_labels(questions, AnswerStore(path), "judge")
    outcomes = {outcome for label in labels for outcome in (label.given, label.swapped)}
    assert outcomes <= {*PROBABILITIES, Outcome.UNPARSEABLE}
    assert len(labels) == len(questions) // 2
    assert all(label.prompt_tokens > 100 for label in labels)
