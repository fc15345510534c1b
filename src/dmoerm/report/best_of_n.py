"""The section of report.html on best-of-n, from the best_of_n.json of `dmoerm bon`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..evaluation.experiment_results import BestOfNCondition, BestOfNResults, MethodCurve
from ..evaluation.results import Difference
from .curves import HIGHLIGHTED, Line, kl_plot
from .page import Block, Cell, Row, Section, details, heading, paragraph, plots, preformatted, table
from .parts import method_label, settings_part
from .plots import NARROW, Series, interval_plot, shared_limits

ALL = "all"
"""The entry of all tasks together."""


def best_of_n_section(found: BestOfNResults) -> Section:
    """What choosing the best of n by each method's reward is worth."""
    blocks = [Block(title, content) for title, content in _blocks(found) if content]
    return Section("Best of n", _lead(found), blocks)


def _lead(found: BestOfNResults) -> str:
    prompts = ", ".join(f"{_known(task)} {count}" for task, count in found.prompts.items())
    return paragraph(
        f"Samples: {found.source or 'not said'}; at least {found.samples:,} of each prompt; prompts: {prompts}. "
        f"Seeds {', '.join(map(str, found.seeds))}."
    ) + "".join(paragraph(_sentence(name, c, found.ns)) for name, c in found.conditions.items())


def _sentence(name: str, condition: BestOfNCondition, ns: Sequence[int]) -> str:
    end = condition.at_the_end[_main(condition)].get("dmoerm - general")
    if end is None:
        return ""
    gap = f"{end.value:+z.3f} ({end.low:+z.3f} to {end.high:+z.3f})"
    return f"{name}: gold of dmoerm's choice from {ns[-1]:,} less that of the single model's: {gap}."


def _blocks(found: BestOfNResults) -> Iterable[tuple[str, str]]:
    yield "Gold and proxy against √KL", _overall(found)
    yield "Gold by task", _by_task(found)
    for name, condition in found.conditions.items():
        yield f"Gold and its peak: {name}", _tables(found, condition)
    yield "Differences at the largest n", _ends(found)
    yield (
        "Every number",
        "".join(
            details(f"{name}, {_known(task)}", _numbers(found, f"{name}, {_known(task)}", curves))
            for name, condition in found.conditions.items()
            for task, curves in condition.curves.items()
        ),
    )
    yield "Settings", preformatted(found.command) + settings_part(found.config, found.versions)


def _known(task: str) -> str:
    """Prompts without a task have the empty name."""
    return task or "no task"


def _main(condition: BestOfNCondition) -> str:
    return ALL if ALL in condition.curves else next(iter(condition.curves))


# --- plots ---------------------------------------------------------------------------------------------------------


def _overall(found: BestOfNResults) -> str:
    images = []
    for name, condition in found.conditions.items():
        curves = condition.curves[_main(condition)]
        images.append((f"{name}: gold", kl_plot(_gold(found, curves), "gold of the best of n")))
        images.append((f"{name}: proxy", kl_plot(_proxy(found, curves), "proxy, standard deviations")))
    shown = ", ".join(method for method in HIGHLIGHTED if any(method in c.curves[_main(c)] for c in _all(found)))
    return paragraph(
        f"Highlighted: {shown}, with 95 % bands over prompts. Thin smooth lines: the fit R(d) = d (α − β d), d = √KL; "
        "a star: its peak, with its interval. The others have their colours of the tables. Where gold falls while the "
        "proxy rises, the reward is over-optimised."
    ) + plots(images, "Best of n against √KL", wide=True)


def _all(found: BestOfNResults) -> list[BestOfNCondition]:
    return list(found.conditions.values())


def _by_task(found: BestOfNResults) -> str:
    text = ""
    for name, condition in found.conditions.items():
        tasks = {task: curves for task, curves in condition.curves.items() if task != ALL}
        if len(tasks) > 1:
            images = [(_known(task), kl_plot(_gold(found, c), "gold", width=NARROW)) for task, c in tasks.items()]
            text += heading(name) + plots(images, f"{name}: gold of the best of n against √KL")
    return text


def _gold(found: BestOfNResults, curves: Mapping[str, MethodCurve]) -> dict[str, Line]:
    distance = np.sqrt(found.kl).tolist()
    return {method: Line(distance, c.gold, c.low, c.high, c.fit) for method, c in curves.items()}


def _proxy(found: BestOfNResults, curves: Mapping[str, MethodCurve]) -> dict[str, Line]:
    return {method: Line(np.sqrt(found.kl).tolist(), curve.proxy) for method, curve in curves.items()}


# --- tables --------------------------------------------------------------------------------------------------------


def _tables(found: BestOfNResults, condition: BestOfNCondition) -> str:
    main = _main(condition)
    text = _peaks(found, f"{_known(main)}: highest gold at the largest n first", condition.curves[main])
    for task, curves in condition.curves.items():
        if task != main:
            text += details(_known(task), _peaks(found, _known(task), curves))
    return text


def _peaks(found: BestOfNResults, title: str, curves: Mapping[str, MethodCurve]) -> str:
    header = ["method", "n = 1" if found.ns[0] == 1 else f"n = {found.ns[0]:,}", "highest", "at n"]
    header += [f"n = {found.ns[-1]:,}", "fit's peak, √KL", "gold there, fitted", "falls after n ="]
    best = sorted(curves.items(), key=lambda item: -item[1].gold[-1])
    return table(title, header, [_peak(found, method, curve) for method, curve in best])


def _peak(found: BestOfNResults, method: str, curve: MethodCurve) -> Row:
    place = max(range(len(curve.gold)), key=curve.gold.__getitem__)
    fit = curve.fit
    peak = fit.peak if fit else None
    ends = fit and (fit.peak_low, fit.peak_high)
    known = "" if not ends or None in ends else "{:.2f} to {:.2f}".format(*ends)
    value = curve.gold[0] + fit.value if fit and fit.value is not None else None
    return [
        method_label(method),
        _gold_cell(curve, 0),
        _gold_cell(curve, place),
        Cell(f"{found.ns[place]:,}"),
        _gold_cell(curve, len(curve.gold) - 1),
        Cell("–" if peak is None else f"{peak:.2f}", known),
        Cell("–" if value is None else f"{value:z.3f}"),
        Cell("–" if curve.falls_after is None else f"{curve.falls_after:,}"),
    ]


def _gold_cell(curve: MethodCurve, place: int) -> Cell:
    return Cell(f"{curve.gold[place]:z.3f}", f"{curve.low[place]:z.3f} to {curve.high[place]:z.3f}")


def _ends(found: BestOfNResults) -> str:
    conditions = found.conditions.items()
    rows = {name: _named(condition.at_the_end[_main(condition)]) for name, condition in conditions}
    rows = {name: row for name, row in rows.items() if row}
    if not rows:
        return ""
    limits = shared_limits(list(rows.values()))
    images = [
        (name, interval_plot([Series(name, row)], "dmoerm − method, gold", mark=0, limits=limits))
        for name, row in rows.items()
    ]
    text = paragraph(f"n = {found.ns[-1]:,}. Right of the line, dmoerm's choice is better.")
    text += plots(images, "By how much the gold of dmoerm's choice is above each method's", wide=True)
    return text + "".join(_end_table(name, condition) for name, condition in conditions)


def _named(ends: Mapping[str, Difference]) -> dict[str, Difference]:
    return {pair.removeprefix("dmoerm - "): found for pair, found in ends.items()}


def _end_table(name: str, condition: BestOfNCondition) -> str:
    tasks = sorted(condition.at_the_end, key=lambda task: task != ALL)
    columns = {task: _named(condition.at_the_end[task]) for task in tasks}
    methods = dict.fromkeys(method for row in columns.values() for method in row)
    rows = [[method_label(m), *(_end_cell(row.get(m)) for row in columns.values())] for m in methods]
    return table(f"{name}: dmoerm − method, gold on the same prompts", ["method", *map(_known, tasks)], rows)


def _end_cell(found: Difference | None) -> Cell:
    return Cell("–") if found is None else Cell(f"{found.value:+z.3f}", f"{found.low:+z.3f} to {found.high:+z.3f}")


def _numbers(found: BestOfNResults, title: str, curves: Mapping[str, MethodCurve]) -> str:
    header = ["method", *(f"n = {n:,}" for n in found.ns), "α", "β"]
    gold, proxy = [], []
    for method, curve in curves.items():
        label, fit = method_label(method), curve.fit
        fitted = [Cell(f"{fit.alpha:.4f}"), Cell(f"{fit.beta:.4f}")] if fit else [Cell("–"), Cell("–")]
        gold.append([label, *(_gold_cell(curve, place) for place in range(len(curve.gold))), *fitted])
        proxy.append([label, *(Cell(f"{value:z.3f}") for value in curve.proxy)])
    distances: Row = ["√KL", *(Cell(f"{kl**0.5:.3f}") for kl in found.kl), Cell(""), Cell("")]
    return table(f"{title}: gold", header, [distances, *gold]) + table(f"{title}: proxy", header[:-2], proxy)
