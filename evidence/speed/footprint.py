"""Measure peak memory while scoring, loading time and size on disk in float32, each in a separate process.

    python -m evidence.speed.footprint          prints the rows and writes results/footprint.json

The plain model is one `AutoModelForSequenceClassification`. The DMoERM models have five experts per task, with one task
and with five tasks.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

import dmoerm
from dmoerm.model.backbone import bundled_backbone
from evidence.measure import write
from evidence.speed.models import ours, plain_model, plainly, score, sequences
from evidence.speed.scoring import BRANCH_LAYER, SHAPES, K, drawn

RUNS = 5


def main() -> None:
    """Measure memory at each shape, loading time and size."""
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root) / name for name in ("plain", "one_task", "five_tasks")}
        plain_model(str(bundled_backbone()), torch.float32).save_pretrained(folders["plain"])
        ours("smollm2", "float32", K, BRANCH_LAYER, 1, "phase3.inputs=both").save_pretrained(folders["one_task"])
        ours("smollm2", "float32", K, BRANCH_LAYER, 5, "phase3.inputs=both").save_pretrained(folders["five_tasks"])
        memory = [{"work": "p{}_n{}_r{}_fp32".format(*shape)} | peaks(folders, shape) for shape in SHAPES]
        seconds = {name: float(in_new_process("load", name, folder)) for name, folder in folders.items()}
        sizes = {
            name: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for name, folder in folders.items()
        }
    ratio = round(sizes["five_tasks"] / sizes["plain"], 3)
    print(memory, seconds, sizes, ratio, sep="\n")
    more: dict[str, Any] = {"peak_memory": memory, "load_s": seconds, "bytes": sizes, "size_ratio": ratio}
    write("footprint", "python -m evidence.speed.footprint", [], **more)


def peaks(folders: dict[str, Path], shape: tuple[int, int, int]) -> dict[str, float]:
    """Return the peak memory of each model in bytes, and its ratio to the plain model's."""
    bytes_ = {name: int(in_new_process("score", name, folder, *shape)) for name, folder in folders.items()}
    ratios = {f"{name}_ratio": round(bytes_[name] / bytes_["plain"], 3) for name in ("one_task", "five_tasks")}
    return bytes_ | ratios


def in_new_process(*arguments: Any) -> str:
    """Run this file in a new process with `arguments` and return the last word that it prints."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def scored(name: str, folder: str, *shape: str) -> int:
    """Load a model, score, and return the peak resident bytes of this process."""
    prompt, responses, tokens = map(int, shape)
    query = drawn(prompt, responses, tokens)
    if name == "plain":
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        plainly([model], sequences([query]))()
    else:
        score(dmoerm.DMoERM.from_pretrained(folder), [query])
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024


def loaded(name: str, folder: str) -> float:
    """Return the median seconds to load a model whose files are in the system's cache."""
    load = AutoModelForSequenceClassification.from_pretrained if name == "plain" else dmoerm.DMoERM.from_pretrained
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        load(folder)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[1:]), 3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print({"score": scored, "load": loaded}[sys.argv[1]](*sys.argv[2:]))
    else:
        main()
