"""Plot the quality of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..io.paths import complete_file
from .quality import LabelQuality

_COLORS = ("#2266cc", "#e0a030", "#55aa77", "#9955bb", "#9aa5b1")


def plot_quality(path: Path, qualities: Sequence[LabelQuality]) -> None:
    """Plot consistency, position bias and κ with people by capability, with one color per judge.

    The suffix of the path selects SVG, PNG or PDF.
    """
    judges = sorted({quality.judge for quality in qualities})
    rows = sorted({(quality.task, quality.capability) for quality in qualities}, reverse=True)
    figure = Figure(figsize=(11, 1.6 + 0.32 * len(rows) * max(1, len(judges) / 2)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for j, judge in enumerate(judges):
        offset = (j - (len(judges) - 1) / 2) * 0.7 / len(judges)
        color = _COLORS[j % len(_COLORS)]
        for quality in (quality for quality in qualities if quality.judge == judge):
            y = rows.index((quality.task, quality.capability)) - offset
            for axes, value in zip(panels, (quality.consistency, quality.shown_first, quality.kappa_both), strict=True):
                if value is not None:
                    axes.plot(value, y, "o", color=color, markersize=5)
            if quality.kappa_interval is not None:
                panels[2].plot(quality.kappa_interval, (y, y), color=color, linewidth=1.2)
        panels[0].plot([], [], "o", color=color, label=judge)
    titles = (
        "consistency of both orders",
        "share for the response shown first",
        "κ with people (both orders agree)",
    )
    for axes, title, mark in zip(panels, titles, (None, 0.5, 0.0), strict=True):
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", linewidth=0.3)
        if mark is not None:
            axes.axvline(mark, color="black", linewidth=0.7, linestyle=":")
    panels[0].set_yticks(range(len(rows)), [f"{task} · {capability}" for task, capability in rows], fontsize=8)
    panels[0].set_xlim(0, 1.02)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    with complete_file(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix.lstrip(".") or "svg")
