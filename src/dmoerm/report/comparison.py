"""The page of a comparison, from the results.json of `dmoerm compare`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..evaluation.experiment_results import Comparison, Condition
from ..evaluation.results import MEAN, SUMMARIES
from .page import Code, Content, Fold, Plots, Section, Table, TableRow, make_section
from .plots import Series, interval_plot
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

_CALIBRATED = ("dmoerm", "general", "per_task_routed")
"""Methods whose reliability is drawn; the table has all methods."""


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Show the methods, and what was measured under each condition."""
    overlap = (comparison.overlap and comparison.overlap.remark) or ""
    lead = [*(_sentence(name, condition) for name, condition in comparison.conditions.items()), overlap]
    first = make_section("Comparison of methods", lead, _blocks(comparison))
    conditions = comparison.conditions.items()
    return [first, *(make_section(f"Condition: {name}", [], _measured(comparison, c)) for name, c in conditions)]


def _sentence(name: str, condition: Condition) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in condition.settings.items())
    text = f"{name} ({f'in training, {settings}' if settings else 'training labels unchanged'})"
    if mean := condition.accuracy["dmoerm"].get(MEAN):
        text += f": the mean accuracy of dmoerm is {in_words(mean)}"
    if difference := condition.paired.get("dmoerm - general", {}).get(MEAN):
        text += f", {in_words(difference)} against the single model"
    return f"{text}."


def _blocks(comparison: Comparison) -> Iterator[tuple[str, Iterable[Content]]]:
    rows = [[method_name(method), description] for method, description in comparison.methods.items()]
    seeds = ", ".join(map(str, comparison.seeds))
    members = f"Seeds: {seeds}. Models in an ensemble: {comparison.members}."
    described = Table("Methods, with their colors in the plots", ["method", "description"], rows)
    yield "Methods", [comparison.budget, members, described]
    yield "Costs", [_costs(comparison)]
    yield "Settings", [Code(comparison.command), *settings_contents(comparison.config, comparison.versions)]


def _costs(comparison: Comparison) -> Table:
    single = comparison.costs.get("general")
    specs = {"training_seconds": ",.1f", "parameters": ",", "scoring_seconds": ".2f"}
    rows: list[TableRow] = []
    for method, cost in comparison.costs.items():
        ratios = {f: getattr(cost, f) / base if single and (base := getattr(single, f)) else None for f in specs}
        details = {field: "" if ratio is None else f"× {ratio:.1f}" for field, ratio in ratios.items()}
        rows.append([method_name(method), *(number(getattr(cost, f), spec, details[f]) for f, spec in specs.items())])
    header = ["method", "training, s", "trained parameters", "scoring, s"]
    return Table("Cost of each method, and its ratio to the cost of the single model; one seed", header, rows)


def _measured(comparison: Comparison, condition: Condition) -> Iterator[tuple[str, Iterable[Content]]]:
    best = sorted(condition.accuracy, key=lambda m: -e.value if (e := condition.accuracy[m].get(MEAN)) else 0.0)
    yield "Accuracy", _accuracy(comparison, condition, best)
    yield "Differences in mean accuracy", _differences(condition, best)
    yield "Capabilities", capability_contents(condition.capabilities)
    yield "Router", router_contents(condition.router)
    yield "Win probability", calibration_contents(condition.calibration, _CALIBRATED)
    yield "Correlation of reward with length", length_contents(condition.length_bias)
    rows = [[method_name(m), *(number(means.get(m), "z.1%") for means in condition.by_seed.values())] for m in best]
    header = ["method", *(f"seed {seed}" for seed in condition.by_seed)]
    yield "Seeds", [Table("Mean accuracy over tasks by seed", header, rows)]


def _accuracy(comparison: Comparison, condition: Condition, best: list[str]) -> Iterator[Content]:
    names = dict.fromkeys(name for row in condition.accuracy.values() for name in row)
    columns = sorted(names, key=lambda name: name not in SUMMARIES)
    others = [column for column in columns if column != MEAN]
    rows: list[TableRow] = []
    for method in best:
        row, paired = condition.accuracy[method], condition.paired.get(f"dmoerm - {method}", {})
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
        measured = {m: condition.accuracy[m][column] for m in best if column in condition.accuracy[m]}
        mark = measured["dmoerm"].value if "dmoerm" in measured else None
        plots[column] = interval_plot([Series(column, measured)], "accuracy (dotted: dmoerm)", mark=mark)
    yield Plots("Accuracy of each method", plots)
    sizes = {c: next(row[c] for row in condition.accuracy.values() if c in row) for c in columns}
    table = [[name, *numbers(estimate, pairs="", prompts="")] for name, estimate in sizes.items()]
    yield Fold("pairs and prompts by task", [Table("Held-out data", ["task", "pairs", "prompts"], table)])
    differences = [
        [method_name(m), *(estimate_number(condition.paired[f"dmoerm - {m}"].get(column)) for column in columns)]
        for m in best
        if f"dmoerm - {m}" in condition.paired
    ]
    table = Table("dmoerm − method, same pairs", ["method", *columns], differences)
    yield Fold("differences by task", [table])


def _differences(condition: Condition, best: list[str]) -> Iterator[Content]:
    means = {m: mean for m in best if (mean := condition.paired.get(f"dmoerm - {m}", {}).get(MEAN))}
    yield "To the right of the line, dmoerm is better."
    plot = {"": interval_plot([Series("", means)], "dmoerm − method, mean accuracy", mark=0)} if means else {}
    yield Plots("Difference in mean accuracy between dmoerm and each method", plot)
