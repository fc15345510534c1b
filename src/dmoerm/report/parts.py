"""Contents that sections of several kinds share: table entries, capabilities, router, calibration, length, settings.

The functions show one or several conditions by name; a single run has one condition with an empty name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from ..evaluation.results import CalibrationResult, Difference, Estimate, LengthBias, Overlap, RouterResult
from .svg_plots import Series, color_of, interval_plot, reliability_plot, shared_limits
from .view import Code, Content, Fold, MethodName, Number, PlotGrid, Table, TableRow


def method_name(method: str) -> MethodName:
    """Return a method's name with its color; the row of dmoerm is highlighted."""
    return MethodName(method, color_of(method), strong=method == "dmoerm")


def number(value: float | None, spec: str = "", detail: str = "") -> Number:
    """Format a number; a dash if the value is missing."""
    return Number("–" if value is None else format(value, spec), detail)


def numbers(record: Any, **specs: str) -> list[Number]:
    """Format fields of a record, each with its format; dashes if the record is missing."""
    return [number(None if record is None else getattr(record, field), spec) for field, spec in specs.items()]


def percent(share: float, sign: str = "") -> str:
    """Format a share in percent; `sign` = "+" for a difference of shares."""
    return f"{share:{sign}z.1%}"


def interval(estimate: Estimate | Difference) -> str:
    """Format both ends of an interval in percent, without the percent sign; those of a difference are signed."""
    if isinstance(estimate, Difference):
        return f"{100 * estimate.low:+z.1f} to {100 * estimate.high:+z.1f}"
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"


def estimate_number(estimate: Estimate | Difference | None) -> Number:
    """Format an estimate in percent with its interval; a dash if it was not measured."""
    if estimate is None:
        return Number("–")
    return Number(percent(estimate.value, "+" if isinstance(estimate, Difference) else ""), interval(estimate))


def reward_difference(difference: Difference | None) -> Number:
    """Format a difference of rewards with its interval; a dash if it was not measured."""
    if difference is None:
        return Number("–")
    return Number(f"{difference.value:+z.3f}", f"{difference.low:+z.3f} to {difference.high:+z.3f}")


def difference_plots(rows: Mapping[str, Mapping[str, Difference]], xlabel: str, label: str) -> PlotGrid:
    """Draw title → method → its difference to dmoerm, all plots on one scale; leave out empty plots."""
    rows = {title: row for title, row in rows.items() if row}
    limits = shared_limits(list(rows.values()))
    plots = {t: interval_plot([Series(t, row)], xlabel, mark=0, limits=limits) for t, row in rows.items()}
    return PlotGrid(label, plots, wide=True)


def titled(condition: str, text: str) -> str:
    """Put the condition's name, if it has one, before a text."""
    return f"{condition}: {text}" if condition else text[0].upper() + text[1:]


def overlap_remark(overlap: Overlap | None) -> str:
    """Return what a reader must know about prompts that a method was trained on; nothing if there are none."""
    return (overlap and overlap.remark) or ""


# --- capabilities and router ---------------------------------------------------------------------------------------


def capability_contents(conditions: Mapping[str, Mapping[str, Mapping[str, Estimate]]]) -> Iterator[Content]:
    """Show condition → task → capability → accuracy of its expert: a heat map for each condition."""
    for condition, tasks in conditions.items():
        names = sorted({name for row in tasks.values() for name in row})
        rows = [[name, *(_capability(row.get(name)) for row in tasks.values())] for name in names]
        title = titled(condition, "accuracy of each expert on its capability (white: chance)")
        yield Table(title, ["capability", *tasks], rows)
        sizes = [[task, n, *numbers(e, pairs="", prompts="")] for task, row in tasks.items() for n, e in row.items()]
        yield Fold("pairs and prompts", [Table("Held-out data", ["task", "capability", "pairs", "prompts"], sizes)])


def _capability(estimate: Estimate | None) -> Number | str:
    return "" if estimate is None else replace(estimate_number(estimate), shade=2 * estimate.value - 1)


def router_contents(routers: Mapping[str, RouterResult]) -> Iterator[Content]:
    """Show condition → the router's accuracy in a sentence, and its confusion of tasks in a table."""
    for condition, router in routers.items():
        if router.confusion:
            yield titled(
                condition,
                f"the most likely task is the prompt's own task for {percent(router.accuracy or 0)} of the "
                f"{router.prompts} prompts; {percent(router.fallback or 0)} fall below the confidence threshold, and "
                "the general model scores them."
                + ("" if router.ece is None else f" Expected calibration error of its confidence: {router.ece:.3f}."),
            )
        tasks = sorted({*router.confusion, *(name for row in router.confusion.values() for name in row)})
        rows = [[task, *(_confusion(row, name) for name in tasks)] for task, row in router.confusion.items()]
        title = titled(condition, "prompts by own task (rows) and the router's most likely task (columns)")
        yield Table(title, ["own task", *tasks], rows)


def _confusion(row: Mapping[str, int], task: str) -> Number:
    count = row.get(task, 0)
    return Number(str(count), shade=count / max(sum(row.values()), 1))


# --- calibration and length ----------------------------------------------------------------------------------------


def calibration_contents(
    conditions: Mapping[str, Mapping[str, CalibrationResult]], drawn: Sequence[str]
) -> Iterator[Content]:
    """Show condition → method → calibration: a plot of the methods `drawn`, and a table of all methods."""
    kept = {c: {method: row[method] for method in drawn if method in row} for c, row in conditions.items()}
    yield "Points on the dotted line are perfectly calibrated. The size of a point is its share of the pairs."
    plots = {condition: reliability_plot(row) for condition, row in kept.items() if row}
    yield PlotGrid("Reliability of win probabilities", plots, wide=True)
    columns, rows = _by_condition(conditions, ["ECE", "pairs"], lambda result: numbers(result, ece=".3f", pairs=""))
    yield Table("Expected calibration error over human-ordered pairs (0 is best)", columns, rows)
    specs = {"low": ".2f", "high": ".2f", "pairs": "", "confidence": ".3f", "accuracy": ".3f"}
    results = [(c, m, result) for c, row in conditions.items() for m, result in row.items()]
    bins = [[method_name(m), c, *numbers(b, **specs)] for c, m, result in results for b in result.bins if b.pairs]
    header = ["method", "condition", "from", "to", "pairs", "confidence", "accuracy"]
    yield Fold("all bins", [Table("Bins by the probability of the likelier winner", header, bins)])


def length_contents(conditions: Mapping[str, Mapping[str, LengthBias]]) -> Iterator[Content]:
    """Show condition → method → correlation of reward with length."""
    yield (
        "Mean correlation of reward and response length (characters) within a prompt. The row human is the correlation "
        "of human grades; the length bias of a method is the part beyond it. Blue: longer responses score higher. "
        "Orange: shorter responses score higher."
    )
    columns, rows = _by_condition(conditions, ["Spearman", "Pearson", "groups"], _bias)
    rows.sort(key=lambda row: row[0] != method_name("human"))
    yield Table("Correlation of reward with length", columns, rows)


def _bias(bias: LengthBias | None) -> list[Number]:
    shades = [] if bias is None else [bias.spearman, bias.pearson]
    correlations = [Number(f"{r:+z.2f}", shade=r) for r in shades] or [Number("–")] * 2
    return [*correlations, *numbers(bias, groups="")]


def _by_condition(
    conditions: Mapping[str, Mapping[str, Any]], names: Sequence[str], entries: Callable[[Any], list[Number]]
) -> tuple[list[str], list[TableRow]]:
    """Return the header and the rows of a table: a row for each method, these columns for each condition."""
    methods = dict.fromkeys(method for row in conditions.values() for method in row)
    rows: list[TableRow] = [
        [method_name(method), *(entry for row in conditions.values() for entry in entries(row.get(method)))]
        for method in methods
    ]
    return ["method", *(f"{condition} {name}".strip() for condition in conditions for name in names)], rows


# --- settings ------------------------------------------------------------------------------------------------------


def settings_contents(config: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[Content]:
    """Show the versions, and the resolved settings behind a fold."""
    yield Table("Versions", ["package", "version"], [[name, version] for name, version in versions.items()])
    yield Fold("resolved settings", [Code(as_yaml(config))])


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML, in their order."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
