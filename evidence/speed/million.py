"""Measure time and memory of a million preference pairs on their way to a head: read, split, tokenize, one step.

    PYTHONPATH=tests python -m evidence.speed.million                writes results/million.json
    PYTHONPATH=tests python -m evidence.speed.million --rows 2000    prints the figures of fewer rows

The rows are short synthetic texts with overall scores. The backbone is tiny and random. The head of the general model
is trained on stored random states, because passes through a backbone take what its size demands.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import print
from rich.console import Console
from tiny import make_exact_config, write_backbone
from torch import Tensor

from dmoerm.chat.encoding import Encoded
from dmoerm.config import Config
from dmoerm.data.splits import load_splits
from dmoerm.training.phases import phase0
from dmoerm.training.progress import Progress
from dmoerm.training.run import check_pairs, claim, prepare, report_data, split_examples
from dmoerm.training.steps import Training
from evidence.measure import table, write

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
TASKS = ("chitchat", "objective_qa")
STATES = 4096  # stored random states, among which the digest of a text chooses


def main() -> None:
    """Write the rows, run all parts, and report them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        config = settings(Path(folder), rows)
        parts = measured(config, rows)
    print(table([{name: str(value) for name, value in part.items()} for part in parts]))
    if rows == 1_000_000:
        peak = max(part["peak GB"] for part in parts)
        write("million", "python -m evidence.speed.million", [], tables={"A million rows": parts}, peak_gigabytes=peak)


def settings(folder: Path, rows: int) -> Config:
    """Write the rows and a backbone; return the settings of one epoch of the general model's head."""
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in drawn(rows))
    step = {"l2": 0.01, "epochs": 1, "evaluations": 1}
    return make_exact_config(
        write_backbone(folder / "backbone"),
        folder,
        data={"files": [str(file)]},
        training={"batch_groups": 512},
        phase0=step,
        phase1={"l2": 0.01},
        phase2={"l2": 0.01},
        phase3={"base_scores": ["per_task", "general"]},
    )


def drawn(rows: int) -> Iterator[dict[str, Any]]:
    """Yield rows of two random responses to a random prompt."""
    chance = random.Random(0)
    for i in range(rows):
        prompt, *responses = (" ".join(chance.choices(WORDS, k=10)) for _ in range(3))
        scores = [1.0, 2.0] if chance.random() < 0.5 else [2.0, 1.0]
        yield {"task": TASKS[i % 2], "prompt": f"{i}: {prompt}?", "responses": responses, "scores": scores}


def measured(config: Config, rows: int) -> list[dict[str, Any]]:
    """Run the parts; return the time of each, and the memory during it."""
    parts: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        start, cpu = time.monotonic(), sum(os.times()[:4])
        with Peak() as peak:
            yield
        minutes, busy = (time.monotonic() - start) / 60, (sum(os.times()[:4]) - cpu) / rows * 1e6
        parts.append(
            {
                "part": name,
                "minutes": round(minutes, 2),
                "CPU µs / row": round(busy),
                "peak GB": round(peak.total, 2),
                "of it no file": round(peak.anonymous, 2),
            }
        )
        print(parts[-1])

    with part("read and split"):
        data = load_splits(config)
    with part("check and digest"):
        check_pairs(data)
        run = prepare(config, data.taxonomy, claim(config, data), Progress(Console(quiet=True)))
    run.cache = States(run.cache.root, run.model.general.head.normalizer.mean.shape[0])  # pyright: ignore
    with part("tokenize"):
        report_data(run, data)
        training = Training(run, *split_examples(run, data.train))
    with part("head step"):
        phase0(training)
    return parts


class States:
    """Stored random states in place of the activation cache."""

    def __init__(self, root: Path, width: int) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        file = root / "states.npy"
        np.save(file, np.random.default_rng(0).standard_normal((STATES, width), dtype=np.float32))
        self._states: Any = np.load(file, mmap_mode="r")

    def embeddings(self, text: Encoded) -> Tensor:
        """Return the states (N, D) of the responses."""
        first = int(text.key[:8], 16)
        rows = [(first + 31 * i) % STATES for i in range(len(text.responses))]
        return torch.from_numpy(self._states[rows])


class Peak:
    """The highest memory of this process and its children in GB, while the block runs.

    Attributes:
        total: resident pages, those of mapped files too; pages that several processes share count for each.
        anonymous: those that no file backs, which the system cannot drop.
    """

    total = anonymous = 0.0

    def __enter__(self) -> Peak:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            memory = [resident(pid) for pid in (os.getpid(), *children(os.getpid()))]
            total, anonymous = (sum(column) for column in zip(*memory, strict=True))
            self.total, self.anonymous = max(self.total, total), max(self.anonymous, anonymous)
            if self._ended.wait(0.1):
                return


def children(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    direct: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            direct += map(int, file.read_text().split())
    return [each for child in direct for each in (child, *children(child))]


def resident(pid: int) -> tuple[float, float]:
    """Return the resident and the anonymous memory of a process in GB; zeros if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    total, anonymous = (int(sizes.get(name, "0 kB").split()[0]) / 1e6 for name in ("VmRSS", "RssAnon"))
    return total, anonymous


if __name__ == "__main__":
    main()
