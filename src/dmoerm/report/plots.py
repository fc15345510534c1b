"""The report's plots, each from numbers to an SVG text, the same bytes each time. Drawn without a display.

A plot is as wide as a telephone's screen or little more, so that its text stays legible there; the page lays several
side by side. A method has the same colour in all of them (`colour_of`); the colours are told apart by those who are
colour-blind, too, and no plot tells methods apart by colour alone.
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
from ..experiments.ablations import ABLATIONS

NARROW, WIDE = 3.5, 4.5
"""Widths of a plot, inches: three or two fit side by side."""

_COLOURS = {
    "dmoerm": "#0066b3",
    "general": "#333333",
    "per_task": "#e69f00",
    "warm": "#cc79a7",
    "gated": "#d55e00",
    "human": "#000000",
}
_FAMILIES = {"ensemble": "#009e73", "bagged": "#56b4e9"}
_ABLATION, _OUTSIDE = "#8a94a0", "#7b5ea7"
_MARKERS = "osD^v"
_LONGEST = 22  # characters of a row's name; the tables have the whole of it
_STYLE = {
    "font.size": 9,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "dmoerm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6b7682",
    "grid.linewidth": 0.4,
    "grid.color": "#c9d0d8",
    "text.parse_math": False,  # names are not ours: a $ in one is a $
}

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Series:
    """Numbers that one legend entry stands for.

    Attributes:
        label: in the legend.
        found: row → its number.
        colour: of all rows; None: each row's name is a method, and has its colour.
    """

    label: str
    found: Mapping[str, Estimate | Difference]
    colour: str | None = None


def colour_of(method: str) -> str:
    """A method's colour on the whole page; members of a family, ablations, and outside methods share one each."""
    if method in ABLATIONS:
        return _ABLATION
    return _COLOURS.get(method) or _FAMILIES.get(method.partition("_")[0], _OUTSIDE)


def as_svg(draw: Callable[Arguments, Figure]) -> Callable[Arguments, str]:
    """Makes a function that draws a figure one that returns its SVG text, in the report's style and no other."""

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
    """A row a name, a dot and its interval a series.

    Args:
        mark: a value that a line is drawn at, such as that of chance.
        limits: of the values; None: as the numbers ask.
    """
    names = list(dict.fromkeys(name for one in series for name in one.found))
    several = len(series) > 1
    figure, axes = new_figure(0.75 + (0.14 + 0.09 * len(series)) * len(names) + 0.3 * several, width)
    offsets = np.linspace(-0.3, 0.3, len(series) + 2)[1:-1]
    for index, (offset, one) in enumerate(zip(offsets, series, strict=True)):
        for place, name in enumerate(names):
            if name in one.found:
                colour = one.colour or colour_of(name)
                _interval(axes, one.found[name], place + offset, colour, *_marker(index, one.colour is None))
    if mark is not None:
        axes.axvline(mark, color="#333333", linewidth=0.8, linestyle=":")
    if limits:
        axes.set_xlim(*limits)
    name_rows(axes, names)
    axes.set_xlabel(xlabel)
    if several:
        handles = [_handle(index, one) for index, one in enumerate(series)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(series)), frameon=False)
    return figure


@as_svg
def reliability_plot(found: Mapping[str, CalibrationResult]) -> Figure:
    """Method → its win probability against how often the likelier winner is the one that people prefer."""
    figure, axes = new_figure(3.5, WIDE)
    axes.plot([0.5, 1], [0.5, 1], color="#333333", linewidth=0.8, linestyle=":")
    lowest = 0.5
    for index, (method, one) in enumerate(found.items()):
        bins = [
            (b.confidence, b.accuracy, b.pairs) for b in one.bins if b.confidence is not None and b.accuracy is not None
        ]
        confidence, accuracy, pairs = np.array(bins, dtype=float).reshape(-1, 3).T
        colour, marker = colour_of(method), _MARKERS[index % len(_MARKERS)]
        axes.plot(confidence, accuracy, color=colour, linewidth=1, alpha=0.7)
        axes.scatter(
            confidence, accuracy, s=12 + 130 * pairs / max(one.pairs, 1), color=colour, marker=marker, alpha=0.8
        )
        axes.plot([], [], marker, color=colour, label=method)
        lowest = min([lowest, *accuracy])
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(lowest - 0.05, 1.05)
    axes.grid()
    axes.set_xlabel("win probability that the method gives")
    axes.set_ylabel("share that people prefer, too")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def shared_limits(rows: Sequence[Mapping[str, Estimate | Difference]]) -> tuple[float, float]:
    """From the lowest end of an interval to the highest, 0 included, for plots that stand side by side."""
    ends = [end for row in rows for found in row.values() for end in (found.low, found.high)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.04 * (high - low or 1.0)
    return low - margin, high + margin


# --- drawing -------------------------------------------------------------------------------------------------------


def new_figure(height: float, width: float) -> tuple[Figure, Axes]:
    """An empty plot, inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """The names of the rows, from above; dmoerm's stands out."""
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    for name, text in zip(names, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if name == "dmoerm" else "normal")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_axisbelow(True)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def shortened(name: str) -> str:
    """A name that leaves room for the plot beside it."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _interval(axes: Axes, found: Estimate | Difference, place: float, colour: str, marker: str, filled: bool) -> None:
    axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.5, solid_capstyle="butt")
    face = colour if filled else "white"
    axes.plot(found.value, place, marker, color=colour, markerfacecolor=face, markersize=4.8, markeredgewidth=1.3)


def _marker(index: int, by_row: bool) -> tuple[str, bool]:
    """Series whose rows have their own colours are told apart by a filled dot, an open one, and other shapes."""
    return (_MARKERS[index // 2 % len(_MARKERS)], index % 2 == 0) if by_row else (_MARKERS[index % len(_MARKERS)], True)


def _handle(index: int, one: Series) -> Line2D:
    colour = one.colour or "#444444"
    marker, filled = _marker(index, one.colour is None)
    face = colour if filled else "white"
    return Line2D([], [], color=colour, marker=marker, markerfacecolor=face, markersize=5, label=shortened(one.label))
