"""The section of a comparison, from the results.json of `dmoerm compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ...evaluation.experiment_results import Comparison, Condition
from ...evaluation.results import SUMMARIES, Cost, Difference
from ...experiments.methods import family_of
from .. import parts
from ..results_kinds import shows
from ..svg_plots import NARROW, Series, interval_plot
from ..view import Code, Content, Fold, Number, PlotGrid, Section, Table, TableRow, make_section

_CALIBRATED = ("dmoerm", "general", "per_task_routed", "ensemble_uwo")
"""Methods whose reliability is drawn; the table has all methods."""
_GROUPS: dict[str, Callable[[str], bool]] = {
    "methods": lambda method: family_of(method) in ("run", "baseline"),
    "external methods": lambda method: family_of(method) == "external",
    "ablations of dmoerm": lambda method: family_of(method) == "ablation",
}


@shows(Comparison, "results.json")
def comparison_section(comparison: Comparison) -> Section:
    """Show all methods under each condition."""
    lead = [_sentence(name, condition) for name, condition in comparison.conditions.items()]
    return make_section("Comparison of methods", [*lead, parts.overlap_remark(comparison.overlap)], _blocks(comparison))


def _sentence(name: str, condition: Condition) -> str:
    mean = condition.accuracy["dmoerm"].get("mean")
    difference = condition.paired.get("dmoerm - general", {}).get("mean")
    text = f"{name} ({_settings(condition)})"
    if mean:
        text += f": the mean accuracy of dmoerm is {parts.percent(mean.value)} ({parts.interval(mean)})"
    if difference:
        text += f", {parts.percent(difference.value, '+')} against the single model ({parts.interval(difference)})"
    return f"{text}."


def _settings(condition: Condition) -> str:
    """Describe what distinguishes a condition."""
    others = dict(condition.settings)
    flips = [others.pop(f"data.flip_{labels}", 0) for labels in ("scores", "capabilities")]
    texts = [f"{name}={value}" for name, value in others.items()]
    if any(flips):
        scores, capabilities = (f"{100 * flip:g} %" for flip in flips)
        texts.append(f"{scores} of the overall and {capabilities} of the capability pairs reversed")
    return f"in training, {', '.join(texts)}" if texts else "training labels unchanged"


def _blocks(comparison: Comparison) -> Iterator[tuple[str, Iterable[Content]]]:
    yield "Methods", _methods(comparison)
    for name, condition in comparison.conditions.items():
        yield f"Accuracy: {name}", _accuracy(comparison, name, condition)
    yield "Accuracy by task", _by_task(comparison.conditions)
    yield "Differences in mean accuracy", _mean_differences(comparison.conditions)
    capabilities, router, calibration, length_bias = (
        {name: getattr(condition, field) for name, condition in comparison.conditions.items()}
        for field in ("capabilities", "router", "calibration", "length_bias")
    )
    yield "Capabilities", parts.capability_contents(capabilities)
    yield "Router", parts.router_contents(router)
    yield "Win probability", parts.calibration_contents(calibration, _CALIBRATED)
    yield "Correlation of reward with length", parts.length_contents(length_bias)
    yield "Seeds", _seeds(comparison)
    yield "Costs", _costs(comparison.costs)
    yield "Settings", [Code(comparison.command), *parts.settings_contents(comparison.config, comparison.versions)]


def _methods(comparison: Comparison) -> Iterator[Content]:
    yield comparison.budget
    yield f"Seeds: {', '.join(map(str, comparison.seeds))}. Models in an ensemble: {comparison.members}."
    rows = _grouped(comparison.methods, lambda method: [parts.method_name(method), comparison.methods[method]])
    yield Table("Methods, with their colors in the plots", ["method", "description"], rows)


def _grouped(methods: Iterable[str], row: Callable[[str], TableRow]) -> list[TableRow | str]:
    """Make a row for each method, in this order, under a heading for each group if there are several groups."""
    methods = list(methods)
    groups = {title: [m for m in methods if belongs(m)] for title, belongs in _GROUPS.items()}
    groups = {title: names for title, names in groups.items() if names}
    if len(groups) == 1:
        return [row(method) for method in methods]
    return [line for title, names in groups.items() for line in (title, *map(row, names))]


# --- accuracy ------------------------------------------------------------------------------------------------------


def _accuracy(comparison: Comparison, name: str, condition: Condition) -> Iterator[Content]:
    columns = _columns(condition)
    others = [column for column in columns if column != "mean"]
    marked = [f"{task}\N{NO-BREAK SPACE}*" if task in comparison.derived_tasks else task for task in others]

    def row(method: str) -> TableRow:
        measured, paired = condition.accuracy[method], condition.paired.get(f"dmoerm - {method}", {})
        shown = [measured.get("mean"), paired.get("mean"), *(measured.get(column) for column in others)]
        return [parts.method_name(method), *map(parts.estimate_number, shown)]

    def difference(method: str) -> TableRow:
        paired = condition.paired[f"dmoerm - {method}"]
        return [parts.method_name(method), *(parts.estimate_number(paired.get(column)) for column in columns)]

    best = _best_first(condition)
    title = f"{name}: share of held-out pairs that a method orders as people do, highest mean first"
    yield Table(title, ["method", "mean", "dmoerm − method", *marked], _grouped(best, row))
    yield from _remarks(comparison)
    yield Fold("pairs and prompts by task", [_sizes(condition, columns)])
    differences = _grouped([m for m in best if f"dmoerm - {m}" in condition.paired], difference)
    yield Fold("differences by task", [Table("dmoerm − method, same pairs", ["method", *columns], differences)])


def _columns(condition: Condition) -> list[str]:
    """Return the summaries, then the tasks."""
    names = dict.fromkeys(name for row in condition.accuracy.values() for name in row)
    return sorted(names, key=lambda name: name not in SUMMARIES)


def _best_first(condition: Condition) -> list[str]:
    def mean(method: str) -> float:
        estimate = condition.accuracy[method].get("mean")
        return estimate.value if estimate else 0.0

    return sorted(condition.accuracy, key=lambda method: -mean(method))


def _remarks(comparison: Comparison) -> Iterator[str]:
    if comparison.derived_tasks:
        yield "* The overall scores are computed from capability grades, not given by people."
    if comparison.gold_tasks:
        tasks = ", ".join(comparison.gold_tasks)
        yield f"These tasks are compared with the testbed's gold reward, not with people: {tasks}."


def _sizes(condition: Condition, columns: Sequence[str]) -> Table:
    measured = {c: next(row[c] for row in condition.accuracy.values() if c in row) for c in columns}
    rows = [[name, *parts.numbers(estimate, pairs="", prompts="")] for name, estimate in measured.items()]
    return Table("Held-out data", ["task", "pairs", "prompts"], rows)


def _by_task(conditions: Mapping[str, Condition]) -> Iterator[Content]:
    methods = dict.fromkeys(m for condition in conditions.values() for m in _best_first(condition))
    columns = dict.fromkeys(column for condition in conditions.values() for column in _columns(condition))
    yield "Each task has its own scale. The dotted line is the accuracy of dmoerm under the first condition."
    compared = [method for method in methods if family_of(method) != "ablation"]
    yield PlotGrid("Accuracy of each method", {c: _task_plot(conditions, compared, c) for c in columns})
    if ablations := [method for method in methods if family_of(method) == "ablation"]:
        yield "The ablations of dmoerm:"
        plots = {c: _task_plot(conditions, ["dmoerm", *ablations], c) for c in columns}
        yield PlotGrid("Accuracy of each ablation", plots)


def _task_plot(conditions: Mapping[str, Condition], methods: Sequence[str], column: str) -> str:
    """Draw the methods' accuracy on one task (or the mean), a mark for each condition."""
    series = [
        Series(name, {m: c.accuracy[m][column] for m in methods if column in c.accuracy.get(m, {})})
        for name, c in conditions.items()
    ]
    reference = series[0].estimates.get("dmoerm")
    return interval_plot(series, "accuracy", mark=reference and reference.value, width=NARROW)


def _mean_differences(conditions: Mapping[str, Condition]) -> Iterator[Content]:
    methods = sorted(_best_first(next(iter(conditions.values()))), key=lambda m: family_of(m) == "ablation")
    rows = {name: _paired_means(condition, methods) for name, condition in conditions.items()}
    yield "To the right of the line, dmoerm is better."
    label = "Difference in mean accuracy between dmoerm and each method"
    yield parts.difference_plots(rows, "dmoerm − method, mean accuracy", label)


def _paired_means(condition: Condition, methods: Iterable[str]) -> dict[str, Difference]:
    means = {method: condition.paired.get(f"dmoerm - {method}", {}).get("mean") for method in methods}
    return {method: mean for method, mean in means.items() if mean}


# --- seeds and costs -----------------------------------------------------------------------------------------------


def _seeds(comparison: Comparison) -> Iterator[Content]:
    conditions = comparison.conditions

    def row(method: str) -> TableRow:
        values = [means.get(method) for c in conditions.values() for means in c.by_seed.values()]
        return [parts.method_name(method), *(parts.number(value, "z.1%") for value in values)]

    header = ["method", *(f"{name}, seed {seed}" for name, c in conditions.items() for seed in c.by_seed)]
    yield Table("Mean accuracy over tasks by seed", header, _grouped(comparison.methods, row))


def _costs(costs: Mapping[str, Cost]) -> Iterator[Content]:
    rows = _grouped(costs, lambda method: _cost(method, costs[method], costs.get("general")))
    header = ["method", "training, s", "trained parameters", "scoring, s"]
    yield Table("Cost of each method, and its ratio to the cost of the single model; one seed", header, rows)


def _cost(method: str, cost: Cost, single: Cost | None) -> TableRow:
    def with_ratio(field: str, spec: str) -> Number:
        value, base = getattr(cost, field), single and getattr(single, field)
        return parts.number(value, spec, f"× {value / base:.1f}" if base else "")

    specs = {"training_seconds": ",.1f", "parameters": ",", "scoring_seconds": ".2f"}
    return [parts.method_name(method), *(with_ratio(field, spec) for field, spec in specs.items())]
