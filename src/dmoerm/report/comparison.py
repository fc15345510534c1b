"""The page of a comparison, from the results.json of `dmoerm compare`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..evaluation.results import MEAN, SUMMARIES, Comparison
from .page import Code, Content, Fold, Plots, Section, Table, TableRow, make_section
from .plots import color_of, interval_plot
from .run import (
    calibration_contents,
    capability_contents,
    estimate_number,
    in_words,
    length_contents,
    method_name,
    number,
    numbers,
    router_contents,
    settings_contents,
)


def comparison_section(comparison: Comparison) -> Section:
    """Show the methods on the same held-out prompts."""
    lead = []
    if mean := comparison.accuracy["dmoerm"].get(MEAN):
        difference = comparison.paired.get("dmoerm - general", {}).get(MEAN)
        against = f", {in_words(difference)} against the single model" if difference else ""
        lead = [f"The mean accuracy of dmoerm is {in_words(mean)}{against}."]
    return make_section("Comparison of methods", lead, _blocks(comparison))


def _blocks(comparison: Comparison) -> Iterator[tuple[str, Iterable[Content]]]:
    best = comparison.best_first
    rows = [[method_name(method), description] for method, description in comparison.methods.items()]
    intro = (
        "All methods of a seed are trained on the same groups, from the same embeddings, and tested on the same "
        f"held-out prompts. Seeds: {', '.join(map(str, comparison.seeds))}."
    )
    yield "Methods", [intro, Table("Methods, with their colors in the plots", ["method", "description"], rows)]
    yield "Accuracy", _accuracy(comparison, best)
    yield "Differences in mean accuracy", _differences(comparison, best)
    yield "Capabilities", capability_contents(comparison.capabilities)
    yield "Router", router_contents(comparison.router)
    yield "Win probability", calibration_contents(comparison.calibration)
    yield "Correlation of reward with length", length_contents(comparison.length_bias)
    seeds = [[method_name(m), *(number(means.get(m), "z.1%") for means in comparison.by_seed.values())] for m in best]
    header = ["method", *(f"seed {seed}" for seed in comparison.by_seed)]
    yield "Seeds", [Table("Mean accuracy over tasks by seed", header, seeds)]
    yield "Settings", [Code(comparison.command), *settings_contents(comparison.config, comparison.versions)]


def _accuracy(comparison: Comparison, best: list[str]) -> Iterator[Content]:
    names = dict.fromkeys(name for row in comparison.accuracy.values() for name in row)
    columns = sorted(names, key=lambda name: name not in SUMMARIES)
    others = [column for column in columns if column != MEAN]
    rows: list[TableRow] = []
    for method in best:
        row, paired = comparison.accuracy[method], comparison.paired.get(f"dmoerm - {method}", {})
        shown = [row.get(MEAN), paired.get(MEAN), *(row.get(column) for column in others)]
        rows.append([method_name(method), *map(estimate_number, shown)])
    marked = [f"{task}\N{NO-BREAK SPACE}*" if task in comparison.derived_tasks else task for task in others]
    title = "Share of held-out pairs that a method orders as people do, highest mean first"
    yield Table(title, ["method", MEAN, "dmoerm − method", *marked], rows)
    if comparison.derived_tasks:
        yield "* The overall scores are computed from capability grades, not given by people."
    if comparison.gold_tasks:
        tasks = ", ".join(comparison.gold_tasks)
        yield f"These tasks are compared with the generator's gold reward, not with people: {tasks}."
    plots = {}
    for column in columns:
        measured = {m: comparison.accuracy[m][column] for m in best if column in comparison.accuracy[m]}
        mark = measured["dmoerm"].value if "dmoerm" in measured else None
        plots[column] = interval_plot({column: measured}, "accuracy (dotted: dmoerm)", mark, _color)
    yield Plots("Accuracy of each method", plots)
    sizes = {c: next(row[c] for row in comparison.accuracy.values() if c in row) for c in columns}
    table = [[name, *numbers(estimate, pairs="", prompts="")] for name, estimate in sizes.items()]
    yield Fold("pairs and prompts by task", [Table("Held-out data", ["task", "pairs", "prompts"], table)])
    differences = [
        [method_name(m), *(estimate_number(comparison.paired[f"dmoerm - {m}"].get(column)) for column in columns)]
        for m in best
        if f"dmoerm - {m}" in comparison.paired
    ]
    table = Table("dmoerm − method, same pairs", ["method", *columns], differences)
    yield Fold("differences by task", [table])


def _differences(comparison: Comparison, best: list[str]) -> Iterator[Content]:
    means = {m: mean for m in best if (mean := comparison.paired.get(f"dmoerm - {m}", {}).get(MEAN))}
    yield "To the right of the line, dmoerm is better."
    plot = {"": interval_plot({"": means}, "dmoerm − method, mean accuracy", 0, _color)} if means else {}
    yield Plots("Difference in mean accuracy between dmoerm and each method", plot)


def _color(_: str, method: str) -> str:
    return color_of(method)
