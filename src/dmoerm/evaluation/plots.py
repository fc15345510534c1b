"""The report's plots, each from `Results` to an SVG text. Drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .results import Difference, Estimate, Results

COLOURS = {"general": "#9aa5b1", "per_task": "#e0a030", "dmoerm": "#2266cc"}
_OTHER = "#55aa77"


def consistency_plot(results: Results) -> str:
    """Each task's consistency under every method, with its interval."""
    names = list(next(iter(results.consistency.values())))
    figure, axes = _figure(0.9 + 0.5 * len(names))
    offsets = np.linspace(0.22, -0.22, max(len(results.consistency), 2))
    for offset, (method, found) in zip(offsets, results.consistency.items(), strict=False):
        colour = COLOURS.get(method, _OTHER)
        _intervals(axes, [found[name] for name in names], np.arange(len(names)) + offset, colour, method)
    axes.axvline(0.5, color="black", linewidth=0.6, linestyle=":")
    _rows(axes, [_marked(results, name) for name in names])
    axes.set_xlabel("consistency (0.5: chance)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.9 / figure.get_figheight()), ncol=4, frameon=False)
    return _svg(figure)


def paired_plot(results: Results) -> str:
    """By how much dmoerm is above each other method, with the interval of the paired difference."""
    names = list(next(iter(results.paired.values())))
    figure, axes = _figure(0.9 + 0.42 * len(names))
    offsets = np.linspace(0.15, -0.15, max(len(results.paired), 2))
    for offset, (pair, found) in zip(offsets, results.paired.items(), strict=False):
        colour = COLOURS.get(pair.removeprefix("dmoerm - "), _OTHER)
        _intervals(axes, [found[name] for name in names], np.arange(len(names)) + offset, colour, pair)
    axes.axvline(0, color="black", linewidth=0.8)
    _rows(axes, [_marked(results, name) for name in names])
    axes.set_xlabel("difference of consistency")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.9 / figure.get_figheight()), ncol=4, frameon=False)
    return _svg(figure)


def capability_plot(results: Results) -> str:
    """How often each expert orders a pair as people do on its capability."""
    rows = [(f"{task} · {name}", e) for task, found in results.capabilities.items() for name, e in found.items()]
    figure, axes = _figure(0.7 + 0.25 * len(rows))
    _intervals(axes, [e for _, e in rows], np.arange(len(rows)), COLOURS["dmoerm"], None)
    axes.axvline(0.5, color="black", linewidth=0.6, linestyle=":")
    _rows(axes, [name for name, _ in rows])
    axes.set_xlabel("accuracy of the expert (0.5: chance)")
    return _svg(figure)


def confusion_plot(results: Results) -> str:
    """Own task (rows) against the router's likeliest task (columns), in prompts."""
    confusion = results.router.confusion
    tasks = sorted({*confusion, *(name for row in confusion.values() for name in row)})
    counts = np.array([[confusion.get(own, {}).get(likeliest, 0) for likeliest in tasks] for own in tasks])
    figure, axes = _figure(1.6 + 0.45 * len(tasks), width=2.6 + 0.75 * len(tasks))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel("likeliest task")
    axes.set_ylabel("own task")
    return _svg(figure)


def reliability_plot(results: Results) -> str:
    """The win probability against how often the likelier winner is the one that people prefer."""
    bins = [b for b in results.calibration.bins if b.pairs]
    figure, axes = _figure(3.6, width=4.2)
    axes.plot([0.5, 1], [0.5, 1], color="black", linewidth=0.6, linestyle=":")
    sizes = 12 + 160 * np.array([b.pairs for b in bins]) / max(results.calibration.pairs, 1)
    axes.scatter([b.confidence for b in bins], [b.accuracy for b in bins], s=sizes, color=COLOURS["dmoerm"])  # pyright: ignore[reportArgumentType]
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min([0.45, *(b.accuracy - 0.05 for b in bins if b.accuracy is not None)]), 1.05)
    axes.set_xlabel("win probability that the model gives")
    axes.set_ylabel("share that people prefer, too")
    return _svg(figure)


def _figure(height: float, width: float = 7.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _intervals(
    axes: Axes, found: Sequence[Estimate | Difference], places: np.ndarray, colour: str, label: str | None
) -> None:
    values = np.array([e.value for e in found])
    spread = np.array([[e.value - e.low for e in found], [e.high - e.value for e in found]]).clip(min=0)
    axes.errorbar(values, places, xerr=spread, fmt="o", markersize=4.5, color=colour, linewidth=1.4, label=label)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.3)


def _marked(results: Results, name: str) -> str:
    return f"{name} *" if name in results.derived_tasks else name


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "dmoerm", "font.size": 9}):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()
