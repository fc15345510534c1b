"""The section of best-of-n, from the best_of_n.json of `dmoerm bon`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ...evaluation.experiment_results import BestOfNCondition, BestOfNResults, MethodCurve
from ...evaluation.results import Difference
from ..kl_plots import HIGHLIGHTED, Line, kl_plot
from ..parts import difference_plots, method_name, number, numbers, overlap_remark, reward_difference, settings_contents
from ..results_kinds import shows
from ..svg_plots import NARROW
from ..view import Code, Content, Fold, Number, PlotGrid, Section, Table, TableRow, make_section

_ALL = "all"
"""The entry of all tasks together."""


@shows(BestOfNResults, "best_of_n.json")
def best_of_n_section(results: BestOfNResults) -> Section:
    """Show the gold reward of the best of n responses by each method's reward."""
    return make_section("Best of n", _lead(results), _blocks(results))


def _lead(results: BestOfNResults) -> Iterator[str]:
    prompts = ", ".join(f"{_task_name(task)} {count}" for task, count in results.prompts.items())
    yield (
        f"Samples: {results.source or 'unknown'}; at least {results.samples:,} for each prompt. Prompts: {prompts}. "
        f"Seeds: {', '.join(map(str, results.seeds))}."
    )
    yield overlap_remark(results.overlap)
    for name, condition in results.conditions.items():
        if end := condition.at_the_end[_main(condition)].get("dmoerm - general"):
            yield (
                f"{name}: at n = {results.ns[-1]:,}, the gold reward of dmoerm's choice minus that of the single "
                f"model's choice is {end.value:+z.3f} ({end.low:+z.3f} to {end.high:+z.3f})."
            )


def _blocks(results: BestOfNResults) -> Iterator[tuple[str, Iterable[Content]]]:
    conditions = results.conditions.items()
    yield "Gold and proxy reward against √KL", _overall(results)
    yield "Gold reward by task", [_by_task(results, name, condition) for name, condition in conditions]
    for name, condition in conditions:
        yield f"Gold reward and its peak: {name}", _peaks(results, condition)
    yield "Differences at the largest n", _ends(results)
    yield (
        "All values",
        [
            Fold(title, list(_values(results, title, curves)))
            for name, condition in conditions
            for task, curves in condition.curves.items()
            if (title := f"{name}, {_task_name(task)}")
        ],
    )
    yield "Settings", [Code(results.command), *settings_contents(results.config, results.versions)]


def _task_name(task: str) -> str:
    """Prompts without a task have an empty name."""
    return task or "no task"


def _main(condition: BestOfNCondition) -> str:
    return _ALL if _ALL in condition.curves else next(iter(condition.curves))


# --- plots ---------------------------------------------------------------------------------------------------------


def _overall(results: BestOfNResults) -> Iterator[Content]:
    plots, drawn = {}, set()
    for name, condition in results.conditions.items():
        curves = condition.curves[_main(condition)]
        drawn |= set(curves)
        plots[f"{name}: gold"] = kl_plot(_gold(results, curves), "gold reward of the best of n")
        plots[f"{name}: proxy"] = kl_plot(_proxy(results, curves), "proxy reward, standard deviations")
    yield (
        f"Highlighted: {', '.join(method for method in HIGHLIGHTED if method in drawn)}, with 95 % bands over prompts. "
        "Thin smooth lines: the fit R(d) = d (α − β d), d = √KL; a star: its peak, with its interval. The other "
        "methods have the colors of the tables. Where gold falls while the proxy rises, the reward is overoptimized."
    )
    yield PlotGrid("Best of n against √KL", plots, wide=True)


def _by_task(results: BestOfNResults, name: str, condition: BestOfNCondition) -> PlotGrid:
    tasks = {task: curves for task, curves in condition.curves.items() if task != _ALL}
    if len(tasks) == 1:
        tasks = {}
    plots = {_task_name(t): kl_plot(_gold(results, c), "gold reward", width=NARROW) for t, c in tasks.items()}
    return PlotGrid(f"{name}: gold reward of the best of n against √KL", plots, title=name)


def _gold(results: BestOfNResults, curves: Mapping[str, MethodCurve]) -> dict[str, Line]:
    distance = np.sqrt(results.kl).tolist()
    return {method: Line(distance, c.gold, c.low, c.high, c.fit) for method, c in curves.items()}


def _proxy(results: BestOfNResults, curves: Mapping[str, MethodCurve]) -> dict[str, Line]:
    return {method: Line(np.sqrt(results.kl).tolist(), curve.proxy) for method, curve in curves.items()}


# --- tables --------------------------------------------------------------------------------------------------------


def _peaks(results: BestOfNResults, condition: BestOfNCondition) -> Iterator[Content]:
    main = _main(condition)
    title = f"{_task_name(main)}: highest gold reward at the largest n first"
    yield _peak_table(results, title, condition.curves[main])
    for task, curves in condition.curves.items():
        if task != main:
            yield Fold(_task_name(task), [_peak_table(results, _task_name(task), curves)])


def _peak_table(results: BestOfNResults, title: str, curves: Mapping[str, MethodCurve]) -> Table:
    header = ["method", f"n = {results.ns[0]:,}", "highest", "at n", f"n = {results.ns[-1]:,}"]
    header += ["peak of the fit, √KL", "fitted gold at the peak", "falls after n ="]
    best = sorted(curves.items(), key=lambda item: -item[1].gold[-1])
    return Table(title, header, [_peak(results, method, curve) for method, curve in best])


def _peak(results: BestOfNResults, method: str, curve: MethodCurve) -> TableRow:
    highest = max(range(len(curve.gold)), key=curve.gold.__getitem__)
    fit = curve.fit
    ends = (fit.peak_low, fit.peak_high) if fit else (None, None)
    return [
        method_name(method),
        _gold_number(curve, 0),
        _gold_number(curve, highest),
        number(results.ns[highest], ","),
        _gold_number(curve, -1),
        number(fit and fit.peak, ".2f", "" if None in ends else "{:.2f} to {:.2f}".format(*ends)),
        number(curve.gold[0] + fit.value if fit and fit.value is not None else None, "z.3f"),
        number(curve.falls_after, ","),
    ]


def _gold_number(curve: MethodCurve, index: int) -> Number:
    return number(curve.gold[index], "z.3f", f"{curve.low[index]:z.3f} to {curve.high[index]:z.3f}")


def _ends(results: BestOfNResults) -> Iterator[Content]:
    conditions = results.conditions.items()
    rows = {name: _by_method(condition.at_the_end[_main(condition)]) for name, condition in conditions}
    yield f"n = {results.ns[-1]:,}. To the right of the line, dmoerm's choice is better."
    label = "Difference in gold reward between dmoerm's choice and each method's"
    yield difference_plots(rows, "dmoerm − method, gold reward", label)
    for name, condition in conditions:
        yield _end_table(name, condition)


def _by_method(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    return {pair.removeprefix("dmoerm - "): difference for pair, difference in differences.items()}


def _end_table(name: str, condition: BestOfNCondition) -> Table:
    tasks = sorted(condition.at_the_end, key=lambda task: task != _ALL)
    columns = [_by_method(condition.at_the_end[task]) for task in tasks]
    methods = dict.fromkeys(method for column in columns for method in column)
    rows = [[method_name(m), *(reward_difference(column.get(m)) for column in columns)] for m in methods]
    return Table(f"{name}: dmoerm − method, gold on the same prompts", ["method", *map(_task_name, tasks)], rows)


def _values(results: BestOfNResults, title: str, curves: Mapping[str, MethodCurve]) -> Iterator[Content]:
    header = ["method", *(f"n = {n:,}" for n in results.ns)]
    gold: list[TableRow] = [["√KL", *(number(kl**0.5, ".3f") for kl in results.kl), Number(""), Number("")]]
    for method, curve in curves.items():
        values = [_gold_number(curve, i) for i in range(len(curve.gold))]
        gold.append([method_name(method), *values, *numbers(curve.fit, alpha=".4f", beta=".4f")])
    yield Table(f"{title}: gold reward", [*header, "α", "β"], gold)
    proxy = [[method_name(m), *(number(value, "z.3f") for value in c.proxy)] for m, c in curves.items()]
    yield Table(f"{title}: proxy reward", header, proxy)
