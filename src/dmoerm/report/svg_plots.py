"""The report's plots: each function turns numbers into an SVG text, with the same bytes each time, without a display.

A plot is about as wide as a phone screen, so that its text is legible there. A method has the same color in all plots
(`color_of`). The colors are distinguishable with color blindness, and markers or line styles distinguish methods too.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evaluation.results import CalibrationResult, Difference, Estimate
from ..experiments.methods import color_of as method_color

NARROW, WIDE = 3.5, 4.5
"""Widths of a plot, inches: three or two fit side by side."""

_HUMAN = "#000000"
_MARKERS = "osD^v"
_LONGEST = 22  # characters of a row's name; the tables show all of it
_STYLE = {
    "font.size": 9,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "dmoerm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6b7682",
    "grid.linewidth": 0.4,
    "grid.color": "#c9d0d8",
    "text.parse_math": False,  # a $ in a name is a plain character
}

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Series:
    """The estimates of one legend entry.

    Attributes:
        label: the text in the legend.
        estimates: row → its estimate.
        color: the color of all rows; None: each row's name is a method, whose color it has.
    """

    label: str
    estimates: Mapping[str, Estimate | Difference]
    color: str | None = None


def color_of(method: str) -> str:
    """Return a method's color: the registry's."""
    return _HUMAN if method == "human" else method_color(method)


def as_svg(draw: Callable[Arguments, Figure]) -> Callable[Arguments, str]:
    """Turn a function that draws a figure into one that returns its SVG text in the report's style."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> str:
        text = io.StringIO()
        with matplotlib.style.context(["default", _STYLE]):
            draw(*args, **kwargs).savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    return drawn


@as_svg
def interval_plot(
    series: Sequence[Series],
    xlabel: str,
    mark: float | None = None,
    limits: tuple[float, float] | None = None,
    width: float = WIDE,
) -> Figure:
    """Draw a row for each name, with a dot and its interval for each series.

    Args:
        mark: a value at which a line is drawn, such as chance level.
        limits: the range of values; None: chosen from the numbers.
    """
    names = list(dict.fromkeys(name for entry in series for name in entry.estimates))
    several = len(series) > 1
    figure, axes = new_figure(0.75 + (0.14 + 0.09 * len(series)) * len(names) + 0.3 * several, width)
    offsets = np.linspace(-0.3, 0.3, len(series) + 2)[1:-1]
    for index, (offset, entry) in enumerate(zip(offsets, series, strict=True)):
        for row, name in enumerate(names):
            if name in entry.estimates:
                color = entry.color or color_of(name)
                _interval(axes, entry.estimates[name], row + offset, color, *_marker(index, entry.color is None))
    if mark is not None:
        axes.axvline(mark, color="#333333", linewidth=0.8, linestyle=":")
    if limits:
        axes.set_xlim(*limits)
    name_rows(axes, names)
    axes.set_xlabel(xlabel)
    if several:
        handles = [_handle(index, entry) for index, entry in enumerate(series)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(series)), frameon=False)
    return figure


@as_svg
def reliability_plot(calibrations: Mapping[str, CalibrationResult]) -> Figure:
    """Draw, for each method, the win probability of the likelier winner against the share that people prefer."""
    figure, axes = new_figure(3.5, WIDE)
    axes.plot([0.5, 1], [0.5, 1], color="#333333", linewidth=0.8, linestyle=":")
    lowest = 0.5
    for index, (method, calibration) in enumerate(calibrations.items()):
        bins = [(b.confidence, b.accuracy, b.pairs) for b in calibration.bins if None not in (b.confidence, b.accuracy)]
        confidence, accuracy, pairs = np.array(bins, dtype=float).reshape(-1, 3).T
        color, marker = color_of(method), _MARKERS[index % len(_MARKERS)]
        axes.plot(confidence, accuracy, color=color, linewidth=1, alpha=0.7)
        axes.scatter(
            confidence, accuracy, s=12 + 130 * pairs / max(calibration.pairs, 1), color=color, marker=marker, alpha=0.8
        )
        axes.plot([], [], marker, color=color, label=method)
        lowest = min([lowest, *accuracy])
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(lowest - 0.05, 1.05)
    axes.grid()
    axes.set_xlabel("win probability of the method")
    axes.set_ylabel("share that people prefer")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def shared_limits(rows: Sequence[Mapping[str, Estimate | Difference]]) -> tuple[float, float]:
    """Return limits that hold all intervals and 0, for plots that stand side by side."""
    ends = [end for row in rows for estimate in row.values() for end in (estimate.low, estimate.high)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.04 * (high - low or 1.0)
    return low - margin, high + margin


# --- drawing -------------------------------------------------------------------------------------------------------


def new_figure(height: float, width: float) -> tuple[Figure, Axes]:
    """Create an empty plot; the sizes are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows from the top; the name dmoerm is bold."""
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    for name, text in zip(names, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if name == "dmoerm" else "normal")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_axisbelow(True)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def shortened(name: str) -> str:
    """Cut a name so that the plot beside it has room."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _interval(axes: Axes, estimate: Estimate | Difference, y: float, color: str, marker: str, filled: bool) -> None:
    axes.plot([estimate.low, estimate.high], [y, y], color=color, linewidth=1.5, solid_capstyle="butt")
    face = color if filled else "white"
    axes.plot(estimate.value, y, marker, color=color, markerfacecolor=face, markersize=4.8, markeredgewidth=1.3)


def _marker(index: int, by_row: bool) -> tuple[str, bool]:
    """Return a marker and whether it is filled; both vary if the rows have colors of their own (`by_row`)."""
    return (_MARKERS[index // 2 % len(_MARKERS)], index % 2 == 0) if by_row else (_MARKERS[index % len(_MARKERS)], True)


def _handle(index: int, entry: Series) -> Line2D:
    color = entry.color or "#444444"
    marker, filled = _marker(index, entry.color is None)
    face = color if filled else "white"
    return Line2D([], [], color=color, marker=marker, markerfacecolor=face, markersize=5, label=shortened(entry.label))
