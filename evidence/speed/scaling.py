"""Measure how scoring time grows with the number of experts and responses (prompt 128, responses of 64, float32).

python -m evidence.speed.scaling          writes results/scaling.json and docs/scaling.svg
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import linregress

from evidence.measure import interleaved, write
from evidence.speed.models import ours, score
from evidence.speed.scoring import BRANCH_LAYER, drawn

EXPERTS, RESPONSES = (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 32, 64)
PROMPT, TOKENS, RUNS = 128, 64, 5


def main() -> None:
    """Measure both curves, fit them and plot them."""
    models = {k: ours("smollm2", "float32", k, BRANCH_LAYER) for k in sorted({*EXPERTS, 5})}
    query = drawn(PROMPT, 4, TOKENS)
    by_k = interleaved([functools.partial(score, models[k], [query]) for k in EXPERTS], RUNS)
    queries = [drawn(PROMPT, n, TOKENS) for n in RESPONSES]
    by_n = interleaved([functools.partial(score, models[5], [query], 1 << 20) for query in queries], RUNS)
    fits = {"experts": fit(EXPERTS, by_k), "responses": fit(RESPONSES, by_n)}
    curves = {
        "experts": dict(zip(map(str, EXPERTS), by_k, strict=True)),
        "responses": dict(zip(map(str, RESPONSES), by_n, strict=True)),
    }
    print(curves, fits)
    plot(by_k, by_n, fits)
    write("scaling", "python -m evidence.speed.scaling", [], seconds=curves, fits=fits, runs=RUNS)


def fit(counts: tuple[int, ...], seconds: list[float]) -> dict[str, float]:
    """Fit a straight line; return it with its R² and the slope of log time over log count (`exponent`)."""
    line = linregress(counts, seconds)
    power = linregress(np.log(counts), np.log(seconds))
    fitted: dict[str, Any] = {"a": line.intercept, "b": line.slope, "r2": line.rvalue**2, "exponent": power.slope}
    return {name: round(float(value), 4) for name, value in fitted.items()}


def plot(by_k: list[float], by_n: list[float], fits: dict[str, dict[str, float]]) -> None:
    """Plot both curves with their fitted lines to docs/scaling.svg."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, name, counts, seconds in zip(
        axes, ("experts", "responses"), (EXPERTS, RESPONSES), (by_k, by_n), strict=True
    ):
        line = fits[name]
        axis.plot(counts, seconds, "o")
        axis.plot(counts, [line["a"] + line["b"] * n for n in counts], "-", linewidth=1)
        axis.set(xlabel=name, ylabel="seconds", ylim=(0, None))
        axis.set_title(f"{line['a']:.2f} s + {line['b']:.3f} s × {name} (R² {line['r2']:.4f})", fontsize=9)
    figure.savefig(Path(__file__).parents[1] / "docs" / "scaling.svg")


if __name__ == "__main__":
    main()
