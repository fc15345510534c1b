"""Format the results of comparisons, best-of-n and policy optimization as Markdown tables for pages.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Results = dict[str, Any]
MAX_COLUMNS = 8
DECISIVE = ("dmoerm", "given_task", "per_task", "all_labels", "all_labels_general", "general")
"""The methods that are shown by task if there are more than `MAX_COLUMNS` tasks."""


def tables(results: Results) -> list[str]:
    """Return the lines between the marks of a page."""
    lines = {"comparison": _comparison, "best_of_n": _best_of_n, "rl": _policies}[results["kind"]](results)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return [*lines, "", f"`{results['command']}`; {versions}."]


def _comparison(results: Results) -> list[str]:
    lines: list[str] = []
    for name, condition in results["conditions"].items():
        changes = ", ".join(f"`{setting}={value}`" for setting, value in condition["settings"].items())
        seeds = ", ".join(condition["by_seed"])
        lines += ["", f"**{name}** ({changes or 'labels unchanged'}), seeds {seeds}:", ""]
        lines += _methods(condition, results)
    return lines


def short(results: Results) -> list[str]:
    """Return the main methods with one column per condition: mean accuracy, and how far DMoERM is above it."""
    conditions = results["conditions"]
    first = next(iter(conditions.values()))["accuracy"]
    main = [method for method in first if not method.startswith(("bagged", "laplace", "risk"))]
    order = sorted(main, key=lambda method: -first[method].get("mean", {"value": 0})["value"])
    rows = []
    means = {m: {n: c["accuracy"].get(m, {}).get("mean") for n, c in conditions.items()} for m in order}
    for methods in _equal(order, means):
        cells = []
        for condition in conditions.values():
            mean, difference = condition["accuracy"].get(methods[0], {}).get("mean"), f"dmoerm - {methods[0]}"
            if "dmoerm" in methods:
                cells.append(f"**{_value(condition['accuracy']['dmoerm']['mean'])}**")
            else:
                cells.append(f"{_value(mean)} [{_points(condition['paired'][difference]['mean'])}]" if mean else "–")
        rows.append([" = ".join(f"**{m}**" if m == "dmoerm" else m for m in methods), *cells])
    seeds = len(next(iter(conditions.values()))["by_seed"])
    prompts = first["dmoerm"]["mean"]["prompts"]
    counts = f"{prompts} prompts, {seeds} seed{'s' * (seeds > 1)}; `{results['command']}`."
    return [*_table(["method", *conditions], rows), "", counts]


def _methods(condition: Results, results: Results) -> list[str]:
    """Return the table of all methods; of many tasks, a table of their own for the methods that decide."""
    accuracy, paired = condition["accuracy"], condition["paired"]
    tasks = [task for task in accuracy["dmoerm"] if not task.startswith("mean")]
    titles = {task: f"{task} \\*" if task in results["derived_tasks"] else task for task in tasks}
    shown = tasks if len(tasks) <= MAX_COLUMNS else []
    human = ["mean_human"] if "mean_human" in accuracy["dmoerm"] else []
    heads = ["method", "mean", "dmoerm − method", *(["tasks scored by people", "dmoerm − method"] if human else [])]
    heads += [*(titles[task] for task in shown), "ECE", "length"]
    rows = []
    for methods in _equal(sorted(accuracy, key=lambda m: -accuracy[m].get("mean", {"value": 0})["value"]), accuracy):
        row, difference = accuracy[methods[0]], paired.get(f"dmoerm - {methods[0]}", {})
        cells = [text for name in ["mean", *human] for text in (_share(row.get(name)), _points(difference.get(name)))]
        cells += [_value(row.get(task)) for task in shown]
        ece, length = condition["calibration"].get(methods[0]), condition["length_bias"].get(methods[0])
        cells += [f"{ece['ece']:.3f}" if ece else "–", f"{length['spearman']:+.2f}" if length else "–"]
        rows.append([" = ".join(f"**{m}**" if m == "dmoerm" else m for m in methods), *cells])
    if shown:
        return _table(heads, rows)
    decisive = [method for method in DECISIVE if method in accuracy]
    by_task = [[titles[t], *(_value(accuracy[m].get(t)) for m in decisive)] for t in tasks]
    return [*_table(heads, rows), "", *_table(["task", *decisive], by_task)]


def _equal(methods: Sequence[str], accuracy: Results) -> list[list[str]]:
    """Return the methods, together those whose accuracies and intervals over prompts are all equal."""
    groups: dict[str, list[str]] = {}
    for method in methods:
        groups.setdefault(repr(accuracy[method]), []).append(method)
    return list(groups.values())


def _value(estimate: Results | None) -> str:
    return f"{100 * estimate['value']:.1f}" if estimate else "–"


def _share(results: Results | None) -> str:
    return f"{100 * results['value']:.1f} ({100 * results['low']:.1f}–{100 * results['high']:.1f})" if results else "–"


def _points(results: Results | None) -> str:
    return _signed(results, 100, 1) if results else "–"


def _signed(difference: Results, scale: float = 1, digits: int = 3) -> str:
    """Return a difference with its interval, which is left out if it has no width, as with one seed."""
    value, low, high = (f"{scale * difference[end]:+.{digits}f}" for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})" if difference["low"] < difference["high"] else value


def _best_of_n(results: Results) -> list[str]:
    lines: list[str] = []
    ns = results["ns"]
    shown = sorted({0, *(round((len(ns) - 1) * share) for share in (0.25, 0.5, 0.75)), len(ns) - 1})
    for name, condition in results["conditions"].items():
        for task, curves in condition["curves"].items():
            if task != "all" and "all" in condition["curves"] and len(condition["curves"]) > 3:
                continue
            heads = ["method", *(f"n = {ns[i]:,}" for i in shown), "highest", "fit's peak, √KL", "falls after n"]
            heads += ["dmoerm − method at the end"]
            rows = [
                _curve(method, curve, ns, shown, condition["at_the_end"][task].get(f"dmoerm - {method}"))
                for method, curve in sorted(curves.items(), key=lambda item: -item[1]["gold"][-1])
            ]
            lines += ["", f"**{name}, {task}**: gold of the best of n", "", *_table(heads, rows)]
    return lines


def _curve(method: str, curve: Results, ns: Sequence[int], shown: Sequence[int], end: Results | None) -> list[str]:
    gold, fit = curve["gold"], curve["fit"] or {"peak": None}
    peak = max(range(len(gold)), key=gold.__getitem__)
    interval = f" ({fit['peak_low']:.2f}–{fit['peak_high']:.2f})" if fit.get("peak_low") is not None else ""
    cells = [f"{gold[i]:.3f}" for i in shown]
    cells[-1] += f" ({curve['low'][-1]:.3f}–{curve['high'][-1]:.3f})"
    return [
        f"**{method}**" if method == "dmoerm" else method,
        *cells,
        f"{gold[peak]:.3f} at {ns[peak]:,}",
        "–" if fit["peak"] is None else f"{fit['peak']:.2f}{interval}",
        "–" if curve["falls_after"] is None else f"{curve['falls_after']:,}",
        "–" if end is None else _signed(end),
    ]


def _fall(summary: Results) -> str:
    low, high = summary.get("fall_low"), summary.get("fall_high")
    return f"{summary['fall']:.3f}" + ("" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})")


def _policies(results: Results) -> list[str]:
    settings = results["settings"]
    scale = f"{settings['steps']} steps of {settings['prompts_per_step']} × {settings['generations']} samples"
    lines = [f"Policy of {results['parameters']:,} parameters, {settings['algorithm'].upper()}, {scale}."]
    heads = ["condition", "method", "beta", "seeds", "KL, nats", "gold: start", "highest", "end", "at the same length"]
    heads += ["fall", "fit's peak, √KL"]
    rows = [
        [
            summary["condition"],
            f"**{summary['method']}**" if summary["method"] == "dmoerm" else summary["method"],
            f"{summary['beta']:g}",
            str(summary["seeds"]),
            f"{summary['kl']:.1f}",
            f"{summary['start']:.3f}",
            f"{summary['peak']:.3f} (step {summary['peak_step']})",
            f"{summary['end']:.3f}",
            "–" if summary.get("end_same_length") is None else f"{summary['end_same_length']:.3f}",
            _fall(summary),
            "–" if not summary["fit"] or summary["fit"]["peak"] is None else f"{summary['fit']['peak']:.2f}",
        ]
        for summary in results["summaries"]
    ]
    lines += [
        "",
        *_table(heads, rows),
        "",
        "Gold at the end, dmoerm less the method: mean over seeds, and Student's 95 % interval from three seeds on:",
        "",
    ]
    pairs = [[condition, name, _signed(d)] for condition, row in results["paired"].items() for name, d in row.items()]
    return [*lines, *_table(["condition", "pair", "difference"], pairs)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in rows)]
