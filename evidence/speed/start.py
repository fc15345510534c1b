"""Measure the first second: from the start of a process to its first score, and of a server until it is ready.

    python -m evidence.speed.start          prints the rows and writes results/start.json

`first_score` imports, loads the model `human` and scores two responses; the peer is a plain reward model on the same
backbone, which transformers loads. The table takes ours apart: each row is a process that does one thing more than the
row before it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from dmoerm.model.backbone import bundled_backbone
from evidence.measure import interleaved, row, write
from evidence.speed.serving import server

RUNS = 3
PROMPT, RESPONSES = "What is 3/4 of 20?", ["15.", "It is 10."]
IMPORTED = "import dmoerm; dmoerm.DMoERM"
LOADED = "rm = dmoerm.DMoERM.from_pretrained('human')"
STEPS = {
    "Python": "",
    "PyTorch": "import torch",
    "transformers' base class of models": "from transformers import PreTrainedModel",
    "dmoerm and its other libraries": IMPORTED,
    "the model": f"{IMPORTED}; {LOADED}",
    "the first score": f"{IMPORTED}; {LOADED}; rm.score({PROMPT!r}, {RESPONSES!r})",
}
PLAIN = f"""
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
path = {str(bundled_backbone())!r}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.bfloat16).eval()
tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
texts = [{PROMPT!r} + response for response in {RESPONSES!r}]
with torch.inference_mode():
    model(**tokenizer(texts, padding=True, return_tensors="pt"))
"""


def main() -> None:
    """Measure all processes in turns, then the server."""
    command = [str(Path(sys.executable).with_name("dmoerm")), "--help"]
    works = [partial(run, [sys.executable, "-c", code]) for code in (*STEPS.values(), PLAIN)]
    *ours, plain, help_s = interleaved([*works, partial(run, command)], RUNS)
    parts = [ours[0], *(after - before for before, after in pairwise(ours))]
    table = [{"part": name, "seconds": f"{seconds:.2f}"} for name, seconds in zip(STEPS, parts, strict=True)]
    more: dict[str, Any] = {"help_s": round(help_s, 2), "serve_to_ready_s": round(ready(), 2)}
    rows = [row("first_score", "plain", ours[-1], plain, RUNS)]
    write("start", "python -m evidence.speed.start", rows, tables={"To the first score": table}, **more)


def run(command: list[str]) -> None:
    """Run a process to its end."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ready() -> float:
    """Return the fewest seconds until `dmoerm serve human` answers /ready."""

    def start() -> None:
        with server("human"):
            seconds.append(time.perf_counter() - began)

    seconds: list[float] = []
    for _ in range(RUNS):
        began = time.perf_counter()
        start()
    return min(seconds)


if __name__ == "__main__":
    main()
