"""A run's section of report.html, from the `Results` of `dmoerm train` or `eval`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..evaluation.results import SUMMARIES, Results
from .page import Block, Cell, Section, paragraph, plots, table
from .parts import (
    calibration_part,
    capability_part,
    estimate_cell,
    interval,
    length_part,
    method_label,
    percent,
    router_part,
    settings_part,
)
from .plots import Series, colour_of, interval_plot

_EXPLANATIONS = {
    "general": "one model trained on all tasks together (the single reward model)",
    "per_task": "one model for each task, given the task",
    "dmoerm": "router, experts and aggregator end to end: the router alone chooses the task",
}


def run_section(results: Results) -> Section:
    """What one run and its evaluation found."""
    blocks = [Block(title, content) for title, content in _blocks(results) if content]
    return Section(f"Run: {results.command}", _lead(results), blocks)


def _lead(results: Results) -> str:
    mean, difference = results.accuracy["dmoerm"]["mean"], results.paired["dmoerm - general"]["mean"]
    return paragraph(
        f"Mean accuracy over {len(results.tasks)} tasks: {percent(mean.value)} ({interval(mean)}), "
        f"{percent(difference.value, '+')} against the single model ({interval(difference)}). Seed {results.seed}."
    )


def _blocks(results: Results) -> Iterable[tuple[str, str]]:
    yield f"Accuracy on {results.overlap.description}", _accuracy(results)
    yield "Differences on the same pairs", _differences(results)
    yield "Capabilities", _capabilities(results)
    yield "Router", router_part({"": results.router})
    yield "Win probability", calibration_part({"": {"dmoerm": results.calibration}}, ["dmoerm"])
    yield "Length", length_part({"": results.length_bias})
    yield "Time and memory", _cost(results)
    yield "Settings", settings_part(results.config, results.versions)


def _accuracy(results: Results) -> str:
    methods = list(results.accuracy)
    rows = [_row(results, name) for name in next(iter(results.accuracy.values()))]
    what = table("Methods", ["method", "what it is"], [[method_label(m), _EXPLANATIONS.get(m, "")] for m in methods])
    series = [Series(m, _marked(results, row), colour_of(m)) for m, row in results.accuracy.items()]
    image = interval_plot(series, "accuracy (0.5: chance)", mark=0.5)
    header = ["task", "pairs", "prompts", *methods, *results.paired]
    return (
        what
        + plots([("", image)], "Accuracy of each method by task", wide=True)
        + table("Share of human-ordered pairs that a method orders the same way", header, rows, SUMMARIES)
        + "".join(map(paragraph, results.remarks))
    )


def _row(results: Results, name: str) -> list[str | Cell]:
    found = [row[name] for row in results.accuracy.values()]
    label = name + (" *" if name in results.derived_tasks else "")
    numbers = [Cell(str(found[0].pairs)), Cell(str(found[0].prompts))]
    differences = [estimate_cell(row[name]) for row in results.paired.values()]
    return [label, *numbers, *map(estimate_cell, found), *differences]


def _marked(results: Results, row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name} *" if name in results.derived_tasks else name: found for name, found in row.items()}


def _differences(results: Results) -> str:
    rows = results.paired.items()
    series = [Series(pair, _marked(results, row), colour_of(pair.removeprefix("dmoerm - "))) for pair, row in rows]
    image = interval_plot(series, "difference of accuracy", mark=0)
    return plots([("", image)], "By how much dmoerm is above each other method, by task", wide=True)


def _capabilities(results: Results) -> str:
    images = [
        (task, interval_plot([Series(task, found, colour_of("dmoerm"))], "accuracy of the expert (0.5: chance)", 0.5))
        for task, found in results.capabilities.items()
    ]
    return plots(images, "Capability accuracy", wide=True) + capability_part({"": results.capabilities})


def _cost(results: Results) -> str:
    rows: list[list[str | Cell]] = [[phase, Cell(f"{seconds:.0f} s")] for phase, seconds in results.time.items()]
    if results.peak_memory is not None:
        rows.append(["peak memory of the process", Cell(f"{results.peak_memory / 2**30:.1f} GiB")])
    return table("Seconds of training by phase, and memory", ["what", "taken"], rows) if rows else ""
