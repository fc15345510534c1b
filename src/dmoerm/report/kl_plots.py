"""Plots of gold or proxy reward against √KL with fitted curves, for best-of-n and for policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evaluation.best_of_n_estimates import Curve
from ..evaluation.experiment_results import CurveFit
from .svg_plots import WIDE, as_svg, color_of, new_figure, shortened

HIGHLIGHTED = ("dmoerm", "per_task", "ensemble_uwo", "general")
"""Methods that are drawn with intervals and fits; the others are thin lines."""
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "osD^"


@dataclass(frozen=True)
class Line:
    """One method's rewards at increasing distance from the initial policy.

    Attributes:
        distance: √KL in √nats, from 0 on.
        values: the reward at each distance.
        low, high: the interval of each value; empty: unknown.
        fit: the fit of the gain over the first value.
        kind: the curve that was fitted, as in `best_of_n.Curve`.
    """

    distance: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    fit: CurveFit | None = None
    kind: Literal["bon", "rl"] = "bon"


@as_svg
def kl_plot(
    lines: Mapping[str, Line], ylabel: str, highlighted: Sequence[str] = HIGHLIGHTED, width: float = WIDE
) -> Figure:
    """Draw each method's line against √KL.

    Highlighted methods have markers, a band for the interval and a thin line for the fit. If the peak of the fit lies
    within the plot, it is a star with its interval.
    """
    figure, axes = new_figure(0.78 * width, width)
    strong = [method for method in highlighted if method in lines]
    thin = [method for method in lines if method not in strong]
    for method in thin:
        axes.plot(lines[method].distance, lines[method].values, color=color_of(method), linewidth=0.8, alpha=0.75)
    for index, method in reversed(list(enumerate(strong))):
        _strong(axes, method, lines[method], index)
    axes.set_xlabel("√KL (√nats)")
    axes.set_ylabel(ylabel)
    axes.grid()
    figure.legend(handles=_legend(strong, thin), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _strong(axes: Axes, method: str, line: Line, index: int) -> None:
    color = color_of(method)
    if len(line.low) and len(line.high):
        axes.fill_between(line.distance, line.low, line.high, color=color, alpha=0.14, linewidth=0)
    axes.plot(line.distance, line.values, color=color, linewidth=1.7, linestyle=_DASHES[index % 4])
    axes.plot(line.distance, line.values, _MARKERS[index % 4], color=color, markersize=3.6)
    if line.fit is not None:
        _fit(axes, line, line.fit, color)


def _fit(axes: Axes, line: Line, fit: CurveFit, color: str) -> None:
    curve = Curve(line.kind, fit.alpha, fit.beta, fit.peak, fit.value)
    grid = np.linspace(0, max(line.distance), 100)
    axes.plot(grid, line.values[0] + curve.at(grid), color=color, linewidth=0.8, alpha=0.8)
    if fit.peak is None or fit.peak > max(line.distance):
        return
    height = line.values[0] + float(curve.at([fit.peak])[0])
    if fit.peak_low is not None and fit.peak_high is not None:
        axes.plot(
            [fit.peak_low, min(fit.peak_high, max(line.distance))], [height] * 2, color=color, linewidth=2.4, alpha=0.5
        )
    axes.plot(fit.peak, height, "*", color=color, markersize=11, markeredgecolor="black", markeredgewidth=0.7)


def _legend(strong: Sequence[str], thin: Sequence[str]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=color_of(m), linestyle=_DASHES[i % 4], marker=_MARKERS[i % 4], markersize=4, label=m)
        for i, m in enumerate(strong)
    ]
    if thin:
        alone = len(thin) == 1
        color, name = (color_of(thin[0]), shortened(thin[0])) if alone else ("#888888", f"{len(thin)} others")
        handles.append(Line2D([], [], color=color, linewidth=0.8, label=name))
    return handles
