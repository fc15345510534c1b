"""Markdown tables of what `dmoerm compare`, `dmoerm bon` and `dmoerm rl` have written: see table.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Found = dict[str, Any]


def tables(found: Found) -> list[str]:
    """The lines of a page between its marks."""
    made = {"comparison": _comparison, "best_of_n": _best_of_n, "rl": _policies}[found["kind"]](found)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return [*made, "", f"`{found['command']}`; {versions}."]


def _comparison(found: Found) -> list[str]:
    lines: list[str] = []
    for name, condition in found["conditions"].items():
        flips = f"{condition['flip_scores']:.0%} overall, {condition['flip_capabilities']:.0%} by capability"
        seeds = ", ".join(condition["by_seed"])
        lines += ["", f"**{name}** (reversed pairs: {flips}), seeds {seeds}:", ""]
        lines += _methods(condition, found)
    costs = [
        [m, f"{c['training_seconds']:.1f}", f"{c['parameters']:,}", f"{c['scoring_seconds']:.2f}"]
        for m, c in found["costs"].items()
    ]
    lines += ["", "What each takes:", "", *_table(["method", "training, s", "trained parameters", "scoring, s"], costs)]
    return lines


def _methods(condition: Found, found: Found) -> list[str]:
    accuracy, paired = condition["accuracy"], condition["paired"]
    tasks = [task for task in accuracy["dmoerm"] if not task.startswith("mean")]
    human = ["mean_human"] if "mean_human" in accuracy["dmoerm"] else []
    heads = ["method", "mean", "dmoerm − method", *(["tasks scored by people", "dmoerm − method"] if human else [])]
    heads += [f"{task} \\*" if task in found["derived_tasks"] else task for task in tasks] + ["ECE", "length"]
    rows = []
    for method in sorted(accuracy, key=lambda m: -accuracy[m].get("mean", {"value": 0})["value"]):
        row, difference = accuracy[method], paired.get(f"dmoerm - {method}", {})
        cells = [text for name in ["mean", *human] for text in (_share(row.get(name)), _points(difference.get(name)))]
        cells += [f"{100 * row[task]['value']:.1f}" if task in row else "–" for task in tasks]
        ece, length = condition["calibration"].get(method), condition["length_bias"].get(method)
        cells += [f"{ece['ece']:.3f}" if ece else "–", f"{length['spearman']:+.2f}" if length else "–"]
        rows.append([f"**{method}**" if method == "dmoerm" else method, *cells])
    return _table(heads, rows)


def _share(found: Found | None) -> str:
    return f"{100 * found['value']:.1f} ({100 * found['low']:.1f}–{100 * found['high']:.1f})" if found else "–"


def _points(found: Found | None) -> str:
    return f"{100 * found['value']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})" if found else "–"


def _best_of_n(found: Found) -> list[str]:
    lines: list[str] = []
    ns = found["ns"]
    shown = sorted({0, *(round((len(ns) - 1) * share) for share in (0.25, 0.5, 0.75)), len(ns) - 1})
    for name, condition in found["conditions"].items():
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


def _curve(method: str, curve: Found, ns: Sequence[int], shown: Sequence[int], end: Found | None) -> list[str]:
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
        "–" if end is None else f"{end['value']:+.3f} ({end['low']:+.3f} to {end['high']:+.3f})",
    ]


def _policies(found: Found) -> list[str]:
    settings = found["settings"]
    scale = f"{settings['steps']} steps of {settings['prompts_per_step']} × {settings['generations']} samples"
    lines = [f"Policy of {found['parameters']:,} parameters, {settings['algorithm'].upper()}, {scale}."]
    heads = [
        "condition",
        "method",
        "beta",
        "seeds",
        "KL, nats",
        "gold: start",
        "highest",
        "end",
        "fall",
        "fit's peak, √KL",
    ]
    rows = [
        [
            one["condition"],
            f"**{one['method']}**" if one["method"] == "dmoerm" else one["method"],
            f"{one['beta']:g}",
            str(one["seeds"]),
            f"{one['kl']:.1f}",
            f"{one['start']:.3f}",
            f"{one['peak']:.3f} (step {one['peak_step']})",
            f"{one['end']:.3f}",
            f"{one['fall']:.3f}",
            "–" if not one["fit"] or one["fit"]["peak"] is None else f"{one['fit']['peak']:.2f}",
        ]
        for one in found["summaries"]
    ]
    lines += [
        "",
        *_table(heads, rows),
        "",
        "Gold at the end, dmoerm less the method, seed by seed (mean and range):",
        "",
    ]
    pairs = [
        [condition, name, f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"]
        for condition, row in found["paired"].items()
        for name, d in row.items()
    ]
    return [*lines, *_table(["condition", "pair", "difference"], pairs)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in rows)]
