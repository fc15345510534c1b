"""The pictures of docs/results.md, drawn from results/experiments/*.json: docs/NAME.svg."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dmoerm.report.plots import as_svg, color_of, name_rows

Files = Mapping[str, Any]
DATA = {
    "compare_human": "human labels, five tasks",
    "compare_human_all": "human labels, eighteen tasks",
    "compare_explanations": "explanations, two tasks",
    "compare_testbed": "testbed, five tasks",
    "compare_final": "the final test set, nine tasks",
}
METHODS = ("general", "gated", "all_labels_general", "per_task", "all_labels", "dmoerm")
CURVES = ("general", "bagged_wco", "per_task", "all_labels", "risk", "dmoerm")
_MARKERS = {"clean": "o", "noisy": "s", "equal": "D"}


@as_svg
def comparison(files: Files) -> Figure:
    """Draw the accuracy of the main methods: a panel per data set, a marker per condition."""
    known = [name for name in DATA if name in files]
    figure = Figure(figsize=(9, 2.4 * ((len(known) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(known) + 1) // 2, 2, squeeze=False).ravel()
    for axes in panels[len(known) :]:
        axes.remove()
    for axes, name in zip(panels, known, strict=False):
        conditions = files[name]["conditions"]
        methods = [m for m in METHODS if all("mean" in c["accuracy"].get(m, {}) for c in conditions.values())]
        for offset, (condition, results) in zip(
            np.linspace(-0.22, 0.22, len(conditions)), conditions.items(), strict=True
        ):
            for row, method in enumerate(methods):
                mean = {end: 100 * results["accuracy"][method]["mean"][end] for end in ("low", "value", "high")}
                y, color = row + offset, color_of(method)
                axes.plot([mean["low"], mean["high"]], [y, y], color=color, linewidth=1.2)
                face = color if condition == "clean" else "white"
                axes.plot(
                    mean["value"], y, _MARKERS.get(condition, "v"), color=color, markerfacecolor=face, markersize=4.5
                )
        name_rows(axes, methods)
        axes.set_title(DATA[name], fontsize=9)
        axes.set_xlabel("accuracy on held-out prompts, %")
    for condition, marker in _MARKERS.items():
        face = "#444444" if condition == "clean" else "white"
        panels[0].plot([], [], marker, color="#444444", markerfacecolor=face, label=condition)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@as_svg
def label_shares(files: Files) -> Figure:
    """Draw accuracy over the share of overall labels and over the share of capability labels."""
    conditions = files["compare_label_shares"]["conditions"]
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, setting, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("overall_fraction", "capability_fraction"),
        ("overall labels (all capability labels)", "capability labels (all overall labels)"),
        strict=True,
    ):
        rows = sorted(
            (c["settings"].get(setting, 1.0), c["accuracy"])
            for name, c in conditions.items()
            if setting in c["settings"] or name == "all"
        )
        shares = [100 * share for share, _ in rows]
        for method in ("general", "per_task", "all_labels", "dmoerm"):
            means = np.array([[100 * row[method]["mean"][end] for end in ("value", "low", "high")] for _, row in rows])
            axes.plot(shares, means[:, 0], "o-", color=color_of(method), label=method, markersize=4)
            axes.fill_between(shares, means[:, 1], means[:, 2], color=color_of(method), alpha=0.1, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.minorticks_off()
        axes.grid()
        axes.set_xlabel(f"share of the prompts with {title}, %")
    figure.axes[0].set_ylabel("accuracy, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


@as_svg
def best_of_n(files: Files) -> Figure:
    """Draw gold over the KL divergence of best-of-n on the testbed, a panel per condition."""
    results = files["best_of_n_testbed"]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, len(results["conditions"]), sharey=True, squeeze=False)[0]
    for axes, (name, condition) in zip(panels, results["conditions"].items(), strict=True):
        for method in CURVES:
            if curve := condition["curves"]["all"].get(method):
                axes.plot(results["kl"], curve["gold"], ".-", color=color_of(method), label=method)
                axes.fill_between(
                    results["kl"], curve["low"], curve["high"], color=color_of(method), alpha=0.08, linewidth=0
                )
        axes.set_title(f"{name} labels", fontsize=9)
        axes.set_xlabel(f"KL, nats (n = 1 to {results['ns'][-1]:,})")
        axes.grid()
    panels[0].set_ylabel("gold reward of the best of n")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


@as_svg
def policies(files: Files) -> Figure:
    """Draw gold over the square root of the KL divergence of optimized policies, the mean over seeds."""
    runs = files["rl_testbed"]["runs"]
    betas = sorted({run["beta"] for run in runs})
    figure = Figure(figsize=(max(4.5, 3 * len(betas)), 3.2), layout="constrained")
    panels = figure.subplots(1, len(betas), sharey=True, squeeze=False)[0]
    for axes, beta in zip(panels, betas, strict=True):
        for method in dict.fromkeys(run["method"] for run in runs):
            same = [run["points"] for run in runs if (run["method"], run["beta"]) == (method, beta)]
            distance = np.mean([[max(point["kl"], 0) ** 0.5 for point in points] for points in same], axis=0)
            gold = np.mean([[point["gold"] for point in points] for points in same], axis=0)
            axes.plot(distance, gold, ".-", color=color_of(method), label=method)
        axes.set_title(f"KL penalty {beta:g}", fontsize=9)
        axes.set_xlabel("√KL, √nats")
        axes.grid()
    panels[0].set_ylabel("gold reward")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


FIGURES: Mapping[str, tuple[str, Callable[[Files], str]]] = {
    "comparison": ("compare_human", comparison),
    "label_shares": ("compare_label_shares", label_shares),
    "best_of_n": ("best_of_n_testbed", best_of_n),
    "policies": ("rl_testbed", policies),
}
"""Name of a picture → the results file that it needs, and the function that draws it."""


def draw(files: Files, folder: Path) -> None:
    """Draw every picture whose results exist."""
    for name, (source, drawn) in FIGURES.items():
        if source in files:
            (folder / f"{name}.svg").write_text(drawn(files), encoding="utf-8")
