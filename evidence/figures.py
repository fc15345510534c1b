"""The pictures of docs/results.md, drawn from results/experiments/*.json: docs/NAME.svg."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dmoerm.report.plots import as_svg, color_of, name_rows
from evidence import claims

Files = Mapping[str, Any]
DATA = {
    "compare_human": "five tasks, human labels",
    "compare_human_all": "eighteen tasks, human labels",
    "compare_testbed": "testbed, gold",
    "compare_final2": "six tasks, second final set",
}
METHODS = ("general", "gated", "all_labels_general", "per_task", "all_labels", "dmoerm")
CURVES = ("general", "bagged_wco", "per_task", "all_labels", "risk", "dmoerm")
_MARKERS = {"clean": "o", "noisy": "s", "equal": "D"}


@as_svg
def comparison(files: Files) -> Figure:
    """Draw the accuracy of the main methods: a row for each data set, a column for each backbone."""
    names = [name for name in DATA if name in files]
    figure = Figure(figsize=(9, 2.3 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharex="row")
    for axes, (name, backbone) in zip(panels.ravel(), itertools.product(names, ("", claims.SECOND)), strict=True):
        if name + backbone not in files:
            axes.set_axis_off()
            continue
        conditions = files[name + backbone]["conditions"]
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
        axes.set_title(f"{claims.BACKBONES[bool(backbone)]}: {DATA[name]}", fontsize=9)
        axes.set_xlabel("accuracy on held-out prompts, %")
    for condition, marker in _MARKERS.items():
        face = "#444444" if condition == "clean" else "white"
        panels[0, 0].plot([], [], marker, color="#444444", markerfacecolor=face, label=condition)
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
    known = [name for name in ("best_of_n_testbed", "best_of_n_testbed" + claims.SECOND) if name in files]
    figure = Figure(figsize=(9, 3 * len(known)), layout="constrained")
    panels = figure.subplots(len(known), 2, sharey=True, squeeze=False)
    for row, source in zip(panels, known, strict=True):
        results = files[source]
        for axes, (name, condition) in zip(row, sorted(results["conditions"].items()), strict=True):
            for method in CURVES:
                if curve := condition["curves"]["all"].get(method):
                    color = color_of(method)
                    axes.plot(results["kl"], curve["gold"], ".-", color=color, label=method)
                    axes.fill_between(results["kl"], curve["low"], curve["high"], color=color, alpha=0.08, linewidth=0)
            axes.set_title(f"{claims.BACKBONES[source.endswith(claims.SECOND)]}: {name} labels", fontsize=9)
            axes.set_xlabel(f"KL, nats (n = 1 to {results['ns'][-1]:,})")
            axes.grid()
        row[0].set_ylabel("gold reward of the best of n")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
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


RECIPE_COLORS = {"frozen": "#1b6ca8", "finetune": "#4c9a52", "lora": "#c8811e", "paper": "#b03a48"}


@as_svg
def label_curve(files: Files) -> Figure:
    """Draw accuracy and the gold of the best of n over the number of training groups, a line for each recipe."""
    curves = [files[name]["curve"] for name in ("label-curve-testbed", "label-curve-forms") if name in files]
    rows = list({(row["noise"], row["size"], row["recipe"]): row for curve in curves for row in curve}.values())
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    figure = Figure(figsize=(4.5 * len(noises), 5.6), layout="constrained")
    panels = figure.subplots(2, len(noises), sharex=True, sharey="row", squeeze=False)
    for column, noise in enumerate(noises):
        for recipe, color in RECIPE_COLORS.items():
            line = [row for row in rows if (row["noise"], row["recipe"]) == (noise, recipe)]
            sizes, upper, lower = [row["size"] for row in line], panels[0, column], panels[1, column]
            ends = np.array([row["accuracy"] for row in line]).reshape(-1, 3)
            upper.plot(sizes, ends[:, 0], ".-", color=color, label=recipe)
            upper.fill_between(sizes, ends[:, 1], ends[:, 2], color=color, alpha=0.08, linewidth=0)
            lower.plot(sizes, [row["gold"] for row in line], ".-", color=color)
        panels[0, column].set_title(f"{noise} labels", fontsize=9)
        panels[1, column].set_xlabel("training groups of a task")
        for axes in panels[:, column]:
            logarithmic(axes, "x")
            axes.grid()
    panels[0, 0].set_ylabel("accuracy by gold, %")
    panels[1, 0].set_ylabel("gold of the best of 64")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


@as_svg
def time_to_accuracy(files: Files) -> Figure:
    """Draw accuracy over seconds of training: TRL's curves, and a point for each recipe; a panel per data set."""
    names = [name for name in files if name.startswith("time-to-accuracy-")]
    figure = Figure(figsize=(9, 2.8 * ((len(names) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(names) + 1) // 2, 2, squeeze=False).ravel()
    lines = {
        "trl_full": "#b03a48",
        "trl_lora": "#c8811e",
        "frozen": RECIPE_COLORS["frozen"],
        "finetune": RECIPE_COLORS["finetune"],
    }
    for axes, name in zip(panels, names, strict=False):
        for kind, color in lines.items():
            for part, style in {"each": "-", "all": "--", "ours": "D"}.items():
                if curve := files[name]["curves"].get(kind, {}).get(part):
                    label = f"{kind}, {'dmoerm' if part == 'ours' else f'TRL, {part}'}"
                    axes.plot(*zip(*curve, strict=True), style, color=color, label=label, markersize=5)
        axes.set_title(name.removeprefix("time-to-accuracy-"), fontsize=9)
        logarithmic(axes, "x", (1, 3))
        axes.set_xlabel("seconds of training")
        axes.grid()
    for axes in panels[len(names) :]:
        axes.remove()
    panels[0].set_ylabel("accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


@as_svg
def growth(files: Files) -> Figure:
    """Draw seconds and memory over what grows, a panel for each axis; see speed/growth.py."""
    curves, titles = files["growth"]["curves"], [row["axis"] for row in files["growth"]["tables"]["Growth"]]
    figure = Figure(figsize=(9, 2.6 * ((len(curves) + 2) // 3)), layout="constrained")
    panels = figure.subplots((len(curves) + 2) // 3, 3, squeeze=False).ravel()
    for axes, (title, points) in zip(panels, zip(titles, curves.values(), strict=True), strict=False):
        x, memory = [point["x"] for point in points], axes.twinx()
        axes.plot(x, [point["seconds"] for point in points], "o-", color="#1b6ca8", markersize=4, label="seconds")
        memory.plot(
            x, [max(point["mib"], 1) for point in points], "s--", color="#c8811e", markersize=4, label="memory, MiB"
        )
        for each in (axes, memory):
            logarithmic(each, "x")
            logarithmic(each, "y")
            low, high = each.get_ylim()
            each.set_ylim(min(low, high / 100), high * 3)  # a level curve shall look level
        axes.set_xlabel(title)
        axes.grid()
        if axes is panels[0]:
            figure.legend(handles=[*axes.get_lines(), *memory.get_lines()], loc="outside lower center", ncols=2)
    for axes in panels[len(curves) :]:
        axes.remove()
    return figure


def logarithmic(axes: Axes, which: str, subs: Sequence[int] = (1,)) -> None:
    """Make the axis x or y logarithmic, with plain numbers at these multiples of 10, 100 and so on.

    matplotlib's own are in TeX, which the reports' style does not read.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


FIGURES: Mapping[str, tuple[str, Callable[[Files], str]]] = {
    "comparison": ("compare_human", comparison),
    "label_shares": ("compare_label_shares", label_shares),
    "best_of_n": ("best_of_n_testbed", best_of_n),
    "policies": ("rl_testbed", policies),
    "label_curve": ("label-curve-testbed", label_curve),
    "growth": ("growth", growth),
    "time_to_accuracy": ("time-to-accuracy-humour", time_to_accuracy),
}
"""Name of a picture → the results file that it needs, and the function that draws it."""


def draw(files: Files, folder: Path) -> None:
    """Draw every picture whose results exist."""
    for name, (source, drawn) in FIGURES.items():
        if source in files:
            (folder / f"{name}.svg").write_text(drawn(files), encoding="utf-8")
