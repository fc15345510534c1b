"""How every figure here is taken: two ways of doing the same work, run in turns, the median of each, their ratio."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def interleaved(works: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """The median seconds of each, run in turns after one round to warm up."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(runs + 1):
        for work, seconds in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            synchronise()
            if turn:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(each) for each in times]


def synchronise() -> None:
    """Waits for a GPU to finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row(work: str, peer: str, ours_s: float, peer_s: float, runs: int) -> Row:
    """One figure; a ratio above 1: ours is faster."""
    seconds = {"ours_s": round(ours_s, 4), "peer_s": round(peer_s, 4)}
    return {"work": work, "peer": peer, **seconds, "ratio": round(peer_s / ours_s, 3), "runs": runs}


def write(name: str, command: str, rows: Sequence[Row], **more: Any) -> None:
    """Prints the rows and writes results/NAME.json."""
    for each in rows:
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in each.values()))
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"command": command, "rows": list(rows), **more, **facts()}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def facts() -> dict[str, Any]:
    """What the figures depend on."""
    names = ("torch", "transformers", "peft")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", file.read_text()) if file.exists() else None
    return found[1] if found else platform.machine()
