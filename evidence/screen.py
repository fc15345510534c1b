"""Tables of results on the screen."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from evidence.documents import BestOfNResults, PolicyResults


def print_best_of_n(console: Console, results: BestOfNResults) -> None:
    """Print, for each condition, gold at some values of n and the n with the highest gold."""
    last = len(results.ns) - 1
    shown = sorted({0, last, *(round(last * share) for share in (0.25, 0.5, 0.75))})
    for name, condition in results.conditions.items():
        for task, curves in condition.curves.items():
            table = Table("method", title=f"{name}, {task}: gold of the best of n", title_justify="left")
            for column in (*(f"n = {results.ns[i]:,}" for i in shown), "peak at n", "fit's peak, √KL", "falls after"):
                table.add_column(column, justify="right")
            for method, curve in sorted(curves.items(), key=lambda item: -item[1].gold[-1]):
                peak = max(range(len(curve.gold)), key=curve.gold.__getitem__)
                fit = "–" if curve.fit is None or curve.fit.peak is None else f"{curve.fit.peak:.2f}"
                falls = "–" if curve.falls_after is None else f"{curve.falls_after:,}"
                cells = [f"{curve.gold[i]:.3f}" for i in shown]
                cells[-1] += f" ({curve.low[-1]:.3f}–{curve.high[-1]:.3f})"
                table.add_row(method, *cells, f"{results.ns[peak]:,}", fit, falls)
            console.print(table)


def policies_table(results: PolicyResults) -> Table:
    """Return a table of optimized policies: KL to the initial policy, and gold at start, peak and end."""
    table = Table("method", title="Policy optimization: means on held-out prompts, over seeds", title_justify="left")
    gold_columns = ("gold: start", "peak", "end", "same length", "fall from the peak")
    for name in ("condition", "beta", "seeds", "KL, nats", *gold_columns):
        table.add_column(name, justify="right")
    for summary in results.summaries:
        gold = (
            f"{summary.start:.3f}",
            f"{summary.peak:.3f} (step {summary.peak_step})",
            f"{summary.end:.3f}",
            "–" if summary.end_same_length is None else f"{summary.end_same_length:.3f}",
            _with_interval(summary.fall, summary.fall_low, summary.fall_high),
        )
        table.add_row(
            summary.method, summary.condition, f"{summary.beta:g}", str(summary.seeds), f"{summary.kl:.1f}", *gold
        )
    return table


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
