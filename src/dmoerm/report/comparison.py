"""A comparison's section of report.html, from the results.json of `dmoerm compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..evaluation.experiment_results import Comparison, Condition
from ..evaluation.results import SUMMARIES, Cost, Difference
from ..experiments.ablations import ABLATIONS
from ..experiments.runs import TRAINED
from .page import Block, Cell, Row, Section, details, paragraph, plots, preformatted, table
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
from .plots import NARROW, Series, interval_plot, shared_limits

_CALIBRATED = ("dmoerm", "general", "per_task", "ensemble_uwo")
"""Methods whose reliability is drawn; the table has all."""
_GROUPS: dict[str, Callable[[str], bool]] = {
    "methods": lambda method: method in TRAINED,
    "not trained here": lambda method: method not in TRAINED and method not in ABLATIONS,
    "dmoerm with a part taken away": lambda method: method in ABLATIONS,
}


def comparison_section(found: Comparison) -> Section:
    """All methods under each condition."""
    blocks = [Block(title, content) for title, content in _blocks(found) if content]
    return Section("Comparison of methods", _lead(found), blocks)


def _lead(found: Comparison) -> str:
    return "".join(paragraph(_sentence(name, condition)) for name, condition in found.conditions.items())


def _sentence(name: str, condition: Condition) -> str:
    mean = condition.accuracy["dmoerm"].get("mean")
    difference = condition.paired.get("dmoerm - general", {}).get("mean")
    text = f"{name} ({_labels(condition)})"
    if mean:
        text += f": dmoerm orders {percent(mean.value)} of the pairs as people do ({interval(mean)})"
    if difference:
        text += f", {percent(difference.value, '+')} against the single model ({interval(difference)})"
    return f"{text}."


def _labels(condition: Condition) -> str:
    flips = condition.flip_scores, condition.flip_capabilities
    if not any(flips):
        return "training labels as they come"
    return "in training, {:g} % of the overall and {:g} % of the capability pairs reversed".format(
        *(100 * flip for flip in flips)
    )


def _blocks(found: Comparison) -> Iterable[tuple[str, str]]:
    conditions = found.conditions
    yield "What is compared", _methods(found)
    for name, condition in conditions.items():
        yield f"Accuracy: {name}", _accuracy(found, name, condition)
    yield "Accuracy by task", _by_task(found)
    yield "Differences of the mean", _forest(found)
    yield "Capabilities", capability_part({name: c.capabilities for name, c in conditions.items()})
    yield "Router", router_part({name: c.router for name, c in conditions.items()})
    yield "Win probability", calibration_part({name: c.calibration for name, c in conditions.items()}, _CALIBRATED)
    yield "Length", length_part({name: c.length_bias for name, c in conditions.items()})
    yield "Seeds", _seeds(found)
    yield "Cost", _costs(found)
    yield "Settings", preformatted(found.command) + settings_part(found.config, found.versions)


def _methods(found: Comparison) -> str:
    rows = _grouped(found.methods, lambda method: [method_label(method), found.methods[method]])
    seeds = ", ".join(map(str, found.seeds))
    return (
        paragraph(found.budget)
        + paragraph(f"Seeds {seeds}; {found.members} models in an ensemble.")
        + table("Methods, with their colours in the plots", ["method", "what it is"], rows)
    )


def _grouped(methods: Iterable[str], row: Callable[[str], Row]) -> list[Row | str]:
    """Rows of methods in this order, ablations and outside methods apart, below a heading each."""
    methods = list(methods)
    parts = {title: [m for m in methods if belongs(m)] for title, belongs in _GROUPS.items()}
    parts = {title: names for title, names in parts.items() if names}
    if len(parts) == 1:
        return [row(method) for method in methods]
    return [line for title, names in parts.items() for line in (title, *map(row, names))]


# --- accuracy ---------------------------------------------------------------------------------------------------


def _accuracy(found: Comparison, name: str, condition: Condition) -> str:
    columns = _columns(condition)
    tasks = [column for column in columns if column not in SUMMARIES]
    header = ["method", "mean", "dmoerm − method", *(c for c in columns if c in SUMMARIES[1:]), *_marked(found, tasks)]
    order = [*(c for c in columns if c in SUMMARIES[1:]), *tasks]

    def row(method: str) -> Row:
        measured, paired = condition.accuracy[method], condition.paired.get(f"dmoerm - {method}", {})
        mean = [estimate_cell(measured.get("mean")), estimate_cell(paired.get("mean"))]
        return [method_label(method), *mean, *(estimate_cell(measured.get(column)) for column in order)]

    def difference(method: str) -> Row:
        paired = condition.paired[f"dmoerm - {method}"]
        return [method_label(method), *(estimate_cell(paired.get(column)) for column in columns)]

    best = _best_first(condition)
    differences = _grouped([m for m in best if f"dmoerm - {m}" in condition.paired], difference)
    title = f"{name}: share of held-out pairs ordered as people do, best mean first"
    by_task = table("dmoerm − method, same pairs", ["method", *columns], differences)
    return (
        table(title, header, _grouped(best, row))
        + "".join(map(paragraph, _remarks(found)))
        + details("pairs and prompts by task", _sizes(condition, columns))
        + (details("differences by task", by_task) if differences else "")
    )


def _columns(condition: Condition) -> list[str]:
    """`mean` first, then the tasks."""
    names = dict.fromkeys(name for row in condition.accuracy.values() for name in row)
    return sorted(names, key=lambda name: name not in SUMMARIES)


def _best_first(condition: Condition) -> list[str]:
    def mean(method: str) -> float:
        found = condition.accuracy[method].get("mean")
        return found.value if found else 0.0

    return sorted(condition.accuracy, key=lambda method: -mean(method))


def _marked(found: Comparison, tasks: Iterable[str]) -> list[str]:
    return [f"{task}\N{NO-BREAK SPACE}*" if task in found.derived_tasks else task for task in tasks]


def _remarks(found: Comparison) -> Iterable[str]:
    if found.derived_tasks:
        yield "* Scores computed from capability grades, not given by people."
    if found.gold_tasks:
        yield f"Compared with the testbed's gold reward instead of people: {', '.join(found.gold_tasks)}."


def _sizes(condition: Condition, columns: Sequence[str]) -> str:
    measured = {c: next(row[c] for row in condition.accuracy.values() if c in row) for c in columns}
    rows = [[name, Cell(str(one.pairs)), Cell(str(one.prompts))] for name, one in measured.items()]
    return table("What is held out", ["task", "pairs", "prompts"], rows)


def _by_task(found: Comparison) -> str:
    conditions = found.conditions
    methods = dict.fromkeys(m for condition in conditions.values() for m in _best_first(condition))
    columns = dict.fromkeys(column for condition in conditions.values() for column in _columns(condition))
    main = [method for method in methods if method not in ABLATIONS]
    ablated = ["dmoerm", *(method for method in methods if method in ABLATIONS)]
    text = paragraph("The scale is each task's own; the dotted line is what dmoerm reaches under the first condition.")
    text += plots(((c, _panel(conditions, main, c)) for c in columns), "Accuracy of each method")
    if len(ablated) > 1:
        text += paragraph("The same of dmoerm with a part taken away:")
        text += plots(((c, _panel(conditions, ablated, c)) for c in columns), "Accuracy of each ablation")
    return text


def _panel(conditions: Mapping[str, Condition], methods: Sequence[str], column: str) -> str:
    """Methods by one task's (or the mean's) accuracy, a mark a condition."""
    series = [
        Series(name, {m: c.accuracy[m][column] for m in methods if column in c.accuracy.get(m, {})})
        for name, c in conditions.items()
    ]
    reference = series[0].found.get("dmoerm")
    return interval_plot(series, "accuracy", mark=reference and reference.value, width=NARROW)


def _forest(found: Comparison) -> str:
    methods = sorted(_best_first(next(iter(found.conditions.values()))), key=lambda method: method in ABLATIONS)
    rows = {name: _mean_differences(condition, methods) for name, condition in found.conditions.items()}
    rows = {name: row for name, row in rows.items() if row}
    limits = shared_limits(list(rows.values()))
    images = [
        (name, interval_plot([Series(name, row)], "dmoerm − method, mean accuracy", mark=0, limits=limits))
        for name, row in rows.items()
    ]
    label = "By how much dmoerm's mean accuracy is above each method's"
    return paragraph("Right of the line, dmoerm is better.") + plots(images, label, wide=True) if images else ""


def _mean_differences(condition: Condition, methods: Iterable[str]) -> dict[str, Difference]:
    rows = {method: condition.paired.get(f"dmoerm - {method}", {}).get("mean") for method in methods}
    return {method: row for method, row in rows.items() if row}


# --- seeds and costs -----------------------------------------------------------------------------------------------


def _seeds(found: Comparison) -> str:
    def row(method: str) -> Row:
        values = [by_seed.get(method) for c in found.conditions.values() for by_seed in c.by_seed.values()]
        return [method_label(method), *(Cell("–" if v is None else percent(v)) for v in values)]

    header = ["method", *(f"{name}, seed {seed}" for name, c in found.conditions.items() for seed in c.by_seed)]
    return table("Mean accuracy over tasks by seed", header, _grouped(found.methods, row))


def _costs(found: Comparison) -> str:
    single = found.costs.get("general")
    rows = _grouped(found.costs, lambda method: _cost(method, found.costs[method], single))
    header = ["method", "training, s", "trained parameters", "scoring, s"]
    title = "What each method takes, and how many times what the single model does; one seed"
    return table(title, header, rows) if rows else ""


def _cost(method: str, cost: Cost, single: Cost | None) -> Row:
    pairs = [
        (f"{cost.training_seconds:,.1f}", cost.training_seconds, single and single.training_seconds),
        (f"{cost.parameters:,}", cost.parameters, single and single.parameters),
        (f"{cost.scoring_seconds:.2f}", cost.scoring_seconds, single and single.scoring_seconds),
    ]
    cells = [Cell(text, f"× {value / base:.1f}" if base else "") for text, value, base in pairs]
    return [method_label(method), *cells]
