"""Tables of results on the screen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.results import SUMMARIES

if TYPE_CHECKING:
    from ..evaluation import Results
    from ..evaluation.results import Comparison
    from ..scores import Score

_WIDTH = 140  # if the output is not a terminal


def screen() -> Console:
    """Return the console of the standard output, wide enough for the tables if it is a file or a pipe.

    It has no markup, because names of tasks and methods may contain brackets.
    """
    width = None if "COLUMNS" in os.environ or Console().is_terminal else _WIDTH
    return Console(highlight=False, markup=False, width=width)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], **options: Any) -> Table:
    """Return a table. A column is aligned right if one of its entries is anything else than a plain text.

    Args:
        rows: of texts, integers, shares (a float is shown in percent), estimates with their interval, and None for an
            entry that is missing. A line separates the rows that summarize several tasks from those above.
        options: of `rich.table.Table`.
    """
    rows = list(rows)
    shown = Table(title=title, title_justify="left", **options)
    for index, name in enumerate(header):
        text = all(row[index] is None or isinstance(row[index], str) for row in rows)
        shown.add_column(name, justify="left" if text else "right", overflow="fold")
    for row in rows:
        if row[0] == SUMMARIES[0]:
            shown.add_section()
        shown.add_row(*map(_cell, row))
    return shown


def _cell(value: Any) -> str | Text:
    if value is None:
        return "–"
    if isinstance(value, str | Text):
        return value
    return f"{value:.1%}" if isinstance(value, float) else getattr(value, "percent", str(value))


def print_results(console: Console, results: Results) -> None:
    """Print tables of accuracy, capabilities and router, and lines with the other measurements."""
    router = results.router
    paired = {name: row for name, row in results.paired.items() if name != "dmoerm - per_task"}  # told the task
    columns = [*results.accuracy.values(), *paired.values()]
    title = f"Accuracy on {results.overlap.description}, % (95 % intervals over prompts)"
    rows = [
        [f"{name} *" if name in results.derived_tasks else name, first.pairs, *(column[name] for column in columns)]
        for name, first in columns[0].items()
    ]
    console.print(table(title, ["task", "pairs", *results.accuracy, *paired], rows))
    for remark in results.remarks:
        console.print(remark, soft_wrap=True)
    if results.capabilities:
        rows = [[task, n, e.pairs, e] for task, row in results.capabilities.items() for n, e in row.items()]
        title = "Capabilities: accuracy of the experts, %"
        console.print(table(title, ["task", "capability", "pairs", "accuracy"], rows))
    if len(router.confusion) > 1:
        names = sorted({*router.confusion, *(name for row in router.confusion.values() for name in row)})
        rows = [[task, *(row.get(name, 0) or "·" for name in names)] for task, row in router.confusion.items()]
        console.print(table("Router: prompts by task and likeliest task", ["task", *names], rows))
    lines = [f"win probability: expected calibration error {results.calibration.ece:.3f}"]
    if router.accuracy is not None and len(router.confusion) > 1:
        ece = "" if router.ece is None else f", expected calibration error {router.ece:.3f}"
        lines.insert(
            0,
            f"router: {router.accuracy:.1%} of {router.prompts} prompts right, "
            f"{router.fallback:.1%} below the threshold (scored by the general model){ece}",
        )
    if results.length_bias:
        named = {"human": "the labels"}
        parts = (f"{named.get(name, name)} {bias.spearman:+.2f}" for name, bias in results.length_bias.items())
        lines.append(f"rank correlation with length: {', '.join(parts)}")
    if results.time:
        lines.append(f"training: {', '.join(f'{phase} {seconds:.0f} s' for phase, seconds in results.time.items())}")
    for line in lines:
        console.print(line, soft_wrap=True)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the methods, best mean first, with their difference to dmoerm, and their descriptions."""
    tasks = [name for name in comparison.accuracy["dmoerm"] if name not in SUMMARIES]
    shown = [f"{task} *" if task in comparison.derived_tasks else task for task in tasks]
    rows = []
    for method in comparison.best_first:
        row, calibration = comparison.accuracy[method], comparison.calibration.get(method)
        difference = comparison.paired.get(f"dmoerm - {method}", {}).get("mean")
        ece = None if calibration is None else Text(f"{calibration.ece:.3f}")
        accuracies = (Text(f"{100 * row[task].value:.1f}") if task in row else None for task in tasks)
        rows.append([method, row.get("mean"), difference, ece, *accuracies])
    header = ["method", "mean", "dmoerm − method", "ECE", *shown]
    console.print(table("Accuracy on held-out prompts, %", header, rows))
    if comparison.derived_tasks:
        console.print("* Scores computed from capability grades, not given by people.", soft_wrap=True)
    console.print(table("Methods", ["method", "description"], comparison.methods.items()))


def print_scores(console: Console, responses: Sequence[str], scores: Sequence[Score]) -> None:
    """Print the scores of the responses to one prompt, and why the best is better than the worst."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i].reward)
    best, worst = scores[order[0]], scores[order[-1]]
    route = sorted(best.route.items(), key=lambda item: -item[1])[:2]
    console.print(f"route: {', '.join(f'{task} {probability:.1%}' for task, probability in route)}")
    if parts := best.advantage(worst):
        reasons = ", ".join(f"{name} {value:+.2f}" for name, value in parts.items() if value)
        first, last = order[0] + 1, order[-1] + 1
        line = f"response {first} is better than response {last} by {sum(parts.values()):.2f}: {reasons}"
        console.print(line, soft_wrap=True)
    rewards = (f"{score.reward:+.2f}" for score in scores)
    rows: list[Sequence[str | None]] = [["text", *responses], ["reward", *rewards]]
    if len(scores) > 1:
        wins = (None if score is best else f"{best.win_probability(score):.0%}" for score in scores)
        rows.append([f"response {order[0] + 1} wins with", *wins])
    rows += [[name, *(_contribution(score, name) for score in scores)] for name in best.contributions]
    if best.uncertainty is not None:
        rows.append(["uncertainty", *("–" if s.uncertainty is None else f"{s.uncertainty:.2f}" for s in scores)])
    console.print(table("", ["", *(f"response {i + 1}" for i in range(len(scores)))], rows, show_lines=True))


def _contribution(score: Score, name: str) -> str:
    value, capability = score.contributions.get(name, 0.0), score.capabilities.get(name)
    return (f"{value:+.2f}" if value else "no weight") + ("" if capability is None else f" (score {capability:+.2f})")
