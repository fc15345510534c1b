"""Measure how time and memory grow: with responses, length of the prompt, tasks, capabilities and rows.

    python -m evidence.speed.growth          prints the fits and writes results/growth.json

Every point is a process of its own; its memory is the highest resident size during the work less the size with the
model loaded. Scoring is the recipe `frozen` on SmolLM2-135M; `responses` and `rows` use two of its layers, since the
work besides the layers is what could be worse than linear. `experts`: a LoRA for each capability on the last 6 of 30
layers. `rows` trains a model of one task without capabilities, from the file to the checkpoint; its memory is all that
the process takes beyond its imports. Below 1 MiB, memory counts as 1.

The fit of an axis is seconds = a + b · x by least squares of the relative errors; for the prompt's length, whose
attention is quadratic, a + b · x + c · x². `tasks` has the same requests and the same model for all numbers of tasks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.optimize import nnls

from dmoerm.config import Config, load_config
from dmoerm.model import DMoERM
from dmoerm.model.loading import prepare_process
from dmoerm.schema import Query
from dmoerm.taxonomy import Taxonomy
from dmoerm.training import train
from dmoerm.training.run import build_model
from evidence.measure import write

RUNS = 2
REQUESTS = 64  # of the axis `tasks`, spread over the tasks
TWO_LAYERS = ("backbone.num_layers=2", "backbone.branch_layer=1")
WORDS = ("the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his", "they")
Figures = dict[str, float]
Result = TypeVar("Result")


class Axis(NamedTuple):
    """What grows.

    Attributes:
        values: the points.
        degree: of the fit's polynomial.
        measure: returns seconds, and MiB of peak memory beyond the loaded model, for one value.
    """

    unit: str
    values: Sequence[int]
    degree: int
    measure: Callable[[int], Figures]


def main() -> None:
    """Measure all points, each in a process of its own."""
    curves: dict[str, list[Figures]] = {}
    for name, axis in AXES.items():
        for value in axis.values:
            curves.setdefault(name, []).append({"x": value, **in_process(point, name, value)})
            print(name, curves[name][-1], flush=True)
    fits = [fit(axis, curves[name]) for name, axis in AXES.items()]
    write("growth", "python -m evidence.speed.growth", [], tables={"Growth": fits}, curves=curves)


def in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return the function's result from a process of its own, a fork of one that has the imports and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evidence.speed.training"])
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(function, *arguments).result()


def point(axis: str, value: int) -> Figures:
    """Return the figures of one point."""
    prepare_process()
    return AXES[axis].measure(value)


# --- an axis's points --------------------------------------------------------------------------------------------


def model_of(tasks: int, capabilities: int, *settings: str) -> DMoERM:
    """Build an untrained model of the recipe `frozen`."""
    names = {f"c{i}": {"title": f"c{i}", "rubric": "A benchmark's capability."} for i in range(capabilities)}
    task = {"title": "task", "description": "A benchmark's task.", "capabilities": names}
    taxonomy = {"name": "bench", "language": "en", "tasks": {f"task{i}": task for i in range(tasks)}}
    config = load_config(None, ["extends=frozen", "encoding.max_length=16384", *settings])
    return build_model(config, Taxonomy.model_validate(taxonomy)).eval()


def text(words: int, seed: int = 0) -> str:
    """Return common words, of one token each."""
    return " ".join(random.Random(str(seed)).choices(WORDS, k=words))  # the integers 1 and -1 give the same ones


def scored(model: DMoERM, queries: Sequence[Query], runs: int = RUNS) -> Figures:
    """Return the seconds of scoring the queries, and the peak memory; see `timed`."""

    def score() -> None:
        for _ in model.score_stream(queries):
            pass

    return timed(score, runs)


def timed(work: Callable[[], object], runs: int) -> Figures:
    """Return the fastest run after one that is not counted, unless one run is asked for, and the peak memory."""
    seconds, ended = list[float](), threading.Event()
    before = highest = resident()

    def watch() -> None:  # the system's own peak includes the loading
        nonlocal highest
        while not ended.wait(0.005):
            highest = max(highest, resident())

    with ThreadPoolExecutor(1) as watcher:
        watcher.submit(watch)
        for _ in range(runs + (runs > 1)):
            start = perf_counter()
            work()
            seconds.append(perf_counter() - start)
        ended.set()
    return {"seconds": round(min(seconds[-runs:]), 4), "mib": round(highest - before, 1)}


def resident() -> float:
    """Return the process's resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def responses(count: int) -> Figures:
    query = Query(prompt=text(32), responses=tuple(text(4, i) for i in range(count)), task="task0")
    return scored(model_of(1, 5, *TWO_LAYERS), [query], RUNS if count < 10_000 else 1)


def prompt(length: int) -> Figures:
    return scored(model_of(1, 5), [Query(prompt=text(length), responses=tuple(text(64, i) for i in range(4)))])


def tasks(count: int) -> Figures:
    model = model_of(max(AXES["tasks"].values), 5)
    queries = [
        Query(prompt=text(64, i), responses=(text(32, i), text(32, -i)), task=f"task{i % count}")
        for i in range(REQUESTS)
    ]
    return scored(model, queries)


def capabilities(count: int, *settings: str) -> Figures:
    queries = [Query(prompt=text(128), responses=tuple(text(128, i) for i in range(4)), task="task0")]
    return scored(model_of(1, count, *settings), queries)


def rows(count: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for i in range(count):
                row = {"prompt": f"{i} {text(8, i)}", "responses": [text(8, i), text(9, -i)], "scores": [i % 2, 0.5]}
                out.write(json.dumps(row) + "\n")
        config: Config = load_config(
            None, ["extends=frozen", *TWO_LAYERS, f"data.files=[{file}]", f"output={folder}/run"]
        )
        return timed(lambda: train(config), 1)


LORA = ("phase2.fit=trained", "phase2.lora={rank: 16, alpha: 16}", "backbone={num_layers: 30, branch_layer: 24}")
AXES = {
    "responses": Axis("responses", (10, 1_000, 10_000, 100_000), 1, responses),
    "prompt": Axis("tokens of the prompt", (64, 1_024, 3_072, 6_000), 2, prompt),
    "tasks": Axis("tasks of 64 requests", (1, 8, 64), 1, tasks),
    "capabilities": Axis("capabilities, heads", (1, 8, 32), 1, capabilities),
    "experts": Axis("capabilities, LoRA experts", (1, 8, 16, 32), 1, lambda count: capabilities(count, *LORA)),
    "rows": Axis("rows of a training", (1_000, 3_000, 10_000), 1, rows),
}


# --- the fits ------------------------------------------------------------------------------------------------------


def fit(axis: Axis, points: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the row of an axis: the constants of time and memory, and the largest relative error of each fit."""
    x = np.array([point["x"] for point in points], float)
    cells: dict[str, Any] = {"axis": axis.unit, "from, to": f"{x[0]:,.0f}, {x[-1]:,.0f}"}
    for quantity, unit, thousand in (("seconds", "ms", 1000), ("mib", "KiB", 1024)):
        y = np.array([point[quantity] for point in points])
        y = np.maximum(y, 1) if quantity == "mib" else y  # 0 has no relative error
        factors, largest = polynomial(x, y, axis.degree)
        terms = [f"{thousand * f:.3g} {unit}" + ("", " · x", " · x²")[power] for power, f in enumerate(factors)]
        cells |= {quantity: " + ".join(terms), f"{quantity}: largest error": f"{100 * largest:.0f} %"}
    return cells


def polynomial(x: np.ndarray, y: np.ndarray, degree: int) -> tuple[np.ndarray, float]:
    """Return the non-negative factors, from power 0 on, with the least relative errors, and the largest such error."""
    columns = np.stack([x**power for power in range(degree + 1)], 1) / y[:, None]
    factors, _ = nnls(columns / columns.max(0), np.ones(len(x)))
    factors /= columns.max(0)
    return factors, float(np.abs(columns @ factors - 1).max())


if __name__ == "__main__":
    main()
