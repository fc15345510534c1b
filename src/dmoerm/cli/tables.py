"""Tables of results on the screen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..evaluation.results import SUMMARIES

if TYPE_CHECKING:
    from ..evaluation import Results
    from ..evaluation.results import Comparison, MethodResults
    from ..labeling.quality import LabelQuality
    from ..scores import Score

_WIDTH = 140  # if the output is not a terminal


def screen() -> Console:
    """Return the console of the standard output, wide enough for the tables if it is a file or a pipe.

    It has no markup, because names of tasks and methods may contain brackets.
    """
    width = None if "COLUMNS" in os.environ or Console().is_terminal else _WIDTH
    return Console(highlight=False, markup=False, width=width)


def print_results(console: Console, results: Results) -> None:
    """Print tables of accuracy, capabilities and router, and lines with the other measurements."""
    console.print(_accuracy(results))
    for remark in results.remarks:
        console.print(remark, soft_wrap=True)
    if results.capabilities:
        console.print(_capabilities(results))
    if len(results.router.confusion) > 1:
        console.print(_confusion(results))
    for line in _lines(results):
        console.print(line, soft_wrap=True)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the methods, best mean first, with their difference to dmoerm, and their descriptions."""
    console.print(methods_table("accuracy on held-out prompts, %", comparison, comparison.derived_tasks))
    if comparison.derived_tasks:
        console.print("* Scores computed from capability grades, not given by people.", soft_wrap=True)
    table = Table("method", "description")
    for method, description in comparison.methods.items():
        table.add_row(method, description)
    console.print(table)


def methods_table(title: str, results: MethodResults, derived_tasks: Sequence[str]) -> Table:
    """Return a table of the methods of a comparison, best mean first."""
    tasks = [name for name in results.accuracy["dmoerm"] if name not in SUMMARIES]
    shown = (f"{task} *" if task in derived_tasks else task for task in tasks)
    table = _table(title, ["method"], ("mean", "dmoerm − method", "ECE", *shown))
    best_first = sorted(results.accuracy.items(), key=lambda item: -item[1]["mean"].value if "mean" in item[1] else 0)
    for method, row in best_first:
        paired = results.paired.get(f"dmoerm - {method}", {})
        calibration = results.calibration.get(method)
        cells = [f"{100 * row[task].value:.1f}" if task in row else "–" for task in tasks]
        table.add_row(
            method,
            row["mean"].percent if "mean" in row else "–",
            paired["mean"].percent if "mean" in paired else "–",
            f"{calibration.ece:.3f}" if calibration else "–",
            *cells,
        )
    return table


def _accuracy(results: Results) -> Table:
    title = f"Accuracy on {results.overlap.description}, % (95 % intervals over prompts)"
    paired = {name: row for name, row in results.paired.items() if name != "dmoerm - per_task"}  # told the task
    table = _table(title, ["task"], ("pairs", *results.accuracy, *paired))
    for name, first in next(iter(results.accuracy.values())).items():
        if name == "mean":
            table.add_section()
        cells = [row[name].percent for row in results.accuracy.values()]
        cells += [row[name].percent for row in paired.values()]
        label = f"{name} *" if name in results.derived_tasks else name
        table.add_row(label, str(first.pairs), *cells)
    return table


def _capabilities(results: Results) -> Table:
    table = _table("Capabilities: accuracy of the experts, %", ["task", "capability"], ("pairs", "accuracy"))
    for task, estimates in results.capabilities.items():
        for index, (name, estimate) in enumerate(estimates.items()):
            table.add_row("" if index else task, name, str(estimate.pairs), estimate.percent)
        table.add_section()
    return table


def _confusion(results: Results) -> Table:
    confusion = results.router.confusion
    columns = sorted({*confusion, *(name for row in confusion.values() for name in row)})
    table = _table("Router: prompts by task and likeliest task", ["task"], columns)
    for task, row in confusion.items():
        table.add_row(task, *(str(row.get(name, 0) or "·") for name in columns))
    return table


def _lines(results: Results) -> list[str]:
    lines, router = [], results.router
    if router.accuracy is not None:
        lines.append(
            f"router: {router.accuracy:.1%} of {router.prompts} prompts right, "
            f"{router.fallback:.1%} below the threshold (scored by the general model)"
            + ("" if router.ece is None else f", expected calibration error {router.ece:.3f}")
        )
    lines.append(f"win probability: expected calibration error {results.calibration.ece:.3f}")
    if bias := results.length_bias:
        parts = ", ".join(f"{method} {correlation.spearman:+.2f}" for method, correlation in bias.items())
        lines.append(f"rank correlation with length: {parts}")
    if results.time:
        parts = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in results.time.items())
        lines.append(f"training: {parts}")
    return lines


def scores_table(responses: list[str], scores: list[Score]) -> Table:
    """Return a table of the responses to one prompt, best first: reward, win probability, capabilities."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i].reward)
    table = Table("", title_justify="left", show_lines=True)
    for rank in range(1, len(order) + 1):
        table.add_column(f"response {rank}", overflow="fold")
    best = scores[order[0]]
    table.add_row("text", *(_shortened(responses[i]) for i in order))
    table.add_row("reward", *(f"{scores[i].reward:+.2f}" for i in order))
    table.add_row(
        "the best one wins with", *("–" if i == order[0] else f"{best.win_probability(scores[i]):.0%}" for i in order)
    )
    for name in best.capabilities:
        values = [scores[i].capabilities.get(name) for i in order]
        table.add_row(name, *("–" if value is None else f"{value:+.2f}" for value in values))
    if best.uncertainty is not None:
        table.add_row("uncertainty", *(f"{scores[i].uncertainty or 0:.2f}" for i in order))
    return table


def quality_table(qualities: Iterable[LabelQuality]) -> Iterator[Table]:
    """Yield, per judge, a table of its labels and one of their agreement with people."""
    by_judge: dict[str, list[LabelQuality]] = {}
    for quality in qualities:
        by_judge.setdefault(quality.judge, []).append(quality)
    for judge, rows in by_judge.items():
        yield _label_table(f"{judge}: labels, %", rows)
        if any(row.people for row in rows):
            yield _agreement_table(f"{judge}: agreement with people", rows)


def _label_table(title: str, rows: Sequence[LabelQuality]) -> Table:
    shares = ("consistency", "shown_first", "longer", "unparseable", "refused", "failed", "open")
    names = (name.replace("_", " ") for name in ("pairs", *shares, "tokens", "cost"))
    table = _table(title, ["task", "capability"], names)
    for row in rows:
        cells = [_percent(getattr(row, name)) for name in shares]
        tokens = f"{row.prompt_tokens + row.completion_tokens:,.0f}"
        table.add_row(row.task, row.capability, str(row.pairs), *cells, tokens, f"{row.cost:.4f}")
    return table


def _agreement_table(title: str, rows: Sequence[LabelQuality]) -> Table:
    names = ("ordered", "single order", "both agree", "mean", "people longer, %", "κ single order", "κ both agree")
    table = _table(title, ["task", "capability"], (*names, "95 %"))
    table.caption = (
        "agreement in % of the pairs that people order: single order, both orders agreeing, mean of both orders"
    )
    for row in rows:
        shares = (row.agreement_one, row.agreement_both, row.agreement_mean, row.longer_people)
        kappas = ["–" if value is None else f"{value:+.2f}" for value in (row.kappa_one, row.kappa_both)]
        interval = "–" if row.kappa_interval is None else "{:+.2f} to {:+.2f}".format(*row.kappa_interval)
        table.add_row(row.task, row.capability, str(row.people), *map(_percent, shares), *kappas, interval)
    return table


def _table(title: str, left: Sequence[str], right: Iterable[str]) -> Table:
    """Return a table without rows; its last columns are aligned right."""
    table = Table(*left, title=title, title_justify="left", caption_justify="left")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table of values, with numeric columns aligned right and shares in percent."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _shortened(text: str, length: int = 300) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
