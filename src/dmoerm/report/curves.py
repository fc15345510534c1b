"""Rewards against √KL: best-of-n and policies alike, gold or proxy, with the curves that were fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evaluation.best_of_n import Curve
from ..evaluation.experiment_results import Fit
from .plots import WIDE, as_svg, colour_of, new_figure, shortened

HIGHLIGHTED = ("dmoerm", "per_task", "ensemble_uwo", "general")
"""Methods that are drawn with their intervals and fits; the others are thin lines."""
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "osD^"


@dataclass(frozen=True)
class Line:
    """One method's rewards while its policy moves.

    Attributes:
        distance: √KL, from 0 on, √nats.
        values: the reward at each.
        low, high: its interval; empty: not known.
        fit: of what the reward gains over that at the first distance.
        kind: which curve was fitted, as in `best_of_n.Curve`.
    """

    distance: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    fit: Fit | None = None
    kind: Literal["bon", "rl"] = "bon"


@as_svg
def kl_plot(
    lines: Mapping[str, Line], ylabel: str, highlighted: Sequence[str] = HIGHLIGHTED, width: float = WIDE
) -> Figure:
    """Method → its line against √KL.

    Those highlighted have markers, their interval as a band, their fit as a thin line and the fit's peak, where it lies
    within the plot, as a star with its interval.
    """
    figure, axes = new_figure(0.78 * width, width)
    strong = [method for method in highlighted if method in lines]
    thin = [method for method in lines if method not in strong]
    for method in thin:
        axes.plot(lines[method].distance, lines[method].values, color=colour_of(method), linewidth=0.8, alpha=0.75)
    for index, method in reversed(list(enumerate(strong))):
        _strong(axes, method, lines[method], index)
    axes.set_xlabel("√KL (√nats)")
    axes.set_ylabel(ylabel)
    axes.grid()
    figure.legend(handles=_legend(strong, thin), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _strong(axes: Axes, method: str, line: Line, index: int) -> None:
    colour = colour_of(method)
    if len(line.low) and len(line.high):
        axes.fill_between(line.distance, line.low, line.high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(line.distance, line.values, color=colour, linewidth=1.7, linestyle=_DASHES[index % 4])
    axes.plot(line.distance, line.values, _MARKERS[index % 4], color=colour, markersize=3.6)
    if line.fit is not None:
        _fit(axes, line, line.fit, colour)


def _fit(axes: Axes, line: Line, fit: Fit, colour: str) -> None:
    curve = Curve(line.kind, fit.alpha, fit.beta, fit.peak, fit.value)
    grid = np.linspace(0, max(line.distance), 100)
    axes.plot(grid, line.values[0] + curve.at(grid), color=colour, linewidth=0.8, alpha=0.8)
    if fit.peak is None or fit.peak > max(line.distance):
        return
    height = line.values[0] + float(curve.at([fit.peak])[0])
    if fit.peak_low is not None and fit.peak_high is not None:
        axes.plot(
            [fit.peak_low, min(fit.peak_high, max(line.distance))], [height] * 2, color=colour, linewidth=2.4, alpha=0.5
        )
    axes.plot(fit.peak, height, "*", color=colour, markersize=11, markeredgecolor="black", markeredgewidth=0.7)


def _legend(strong: Sequence[str], thin: Sequence[str]) -> list[Line2D]:
    found = [
        Line2D([], [], color=colour_of(m), linestyle=_DASHES[i % 4], marker=_MARKERS[i % 4], markersize=4, label=m)
        for i, m in enumerate(strong)
    ]
    if thin:
        alone = len(thin) == 1
        colour, name = (colour_of(thin[0]), shortened(thin[0])) if alone else ("#888888", f"{len(thin)} others")
        found.append(Line2D([], [], color=colour, linewidth=0.8, label=name))
    return found
