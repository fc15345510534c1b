"""Compare ways of doing the same work: run them in turns, take the fastest run of each, and return the ratios."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def interleaved(works: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """Run the works in turns after one warm-up round; return the seconds of each one's fastest run.

    On a shared machine a run may take twice as long for a reason outside of it; the median of five moved by half.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(runs + 1):
        for work, seconds in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a GPU's kernels run after the call has returned
            if turn:
                seconds.append(time.perf_counter() - start)
    return [min(each) for each in times]


def row(work: str, peer: str, ours_s: float, peer_s: float, runs: int) -> Row:
    """Return one row; a ratio above 1 means that dmoerm is faster."""
    seconds = {"ours_s": round(ours_s, 4), "peer_s": round(peer_s, 4)}
    return {"work": work, "peer": peer, **seconds, "ratio": round(peer_s / ours_s, 3), "runs": runs}


def write(name: str, command: str, rows: Sequence[Row], **more: Any) -> None:
    """Print the rows and write results/NAME.json."""
    for each in rows:
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in each.values()))
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"command": command, "rows": list(rows), **more, **facts()}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def table(figures: Sequence[Mapping[str, str]]) -> Table:
    """Return the figures as a table of the terminal."""
    result = Table(*figures[0])
    for row in figures:
        result.add_row(*row.values())
    return result


def facts() -> dict[str, Any]:
    """Return the versions, processor, number of threads and date of the measurement."""
    names = ("torch", "transformers", "peft")
    file = Path("/proc/cpuinfo")
    processor = re.search(r"model name\s*: (.*)", file.read_text()) if file.exists() else None
    name = processor[1] if processor else platform.machine()
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else name,
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }
