"""The report's plots: each function turns numbers into an SVG text, with the same bytes each time, without a display.

A plot is about as wide as a phone screen, so that its text is legible there. A method has the same color in all plots
(`color_of`). The colors are distinguishable with color blindness, and markers distinguish methods too.
"""

from __future__ import annotations

import functools
import io
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evaluation.results import Difference, Estimate

_COLORS = {
    "human": "#000000",
    "general": "#333333",
    "per_task_routed": "#cc7a00",
    "per_task": "#e69f00",
    "all_labels_routed": "#8a6508",
    "all_labels": "#b8860b",
    "dmoerm": "#0066b3",
}
_OTHER_COLORS = ("#009e73", "#56b4e9", "#cc79a7", "#d55e00", "#117733", "#6b8e23", "#8b0000", "#7b5ea7", "#8a94a0")

_WIDTH = 4.5  # inches; two plots fit side by side
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


def color_of(method: str) -> str:
    """Return a method's color; a method of a user has one that follows from its name."""
    return _COLORS.get(method) or _OTHER_COLORS[zlib.crc32(method.encode()) % len(_OTHER_COLORS)]


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
    series: Mapping[str, Mapping[str, Estimate | Difference]],
    xlabel: str,
    mark: float | None,
    color: Callable[[str, str], str],
) -> Figure:
    """Draw a row for each name, with a dot and its interval for each series, in percent or in points.

    Args:
        series: entry of the legend → name of a row → its estimate; one entry has no legend.
        mark: a value at which a line is drawn, such as chance level.
        color: returns the color of an entry and a row.
    """
    names = list(dict.fromkeys(name for estimates in series.values() for name in estimates))
    height = 0.75 + (0.14 + 0.09 * len(series)) * len(names) + 0.3 * (len(series) > 1)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes, handles = figure.subplots(), []
    offsets = np.linspace(-0.3, 0.3, len(series) + 2)[1:-1]
    for offset, marker, (label, estimates) in zip(offsets, itertools.cycle(_MARKERS), series.items(), strict=False):
        for row, name in enumerate(names):
            if (estimate := estimates.get(name)) is not None:
                style, y = color(label, name), row + offset
                axes.plot([estimate.low, estimate.high], [y, y], color=style, linewidth=1.5, solid_capstyle="butt")
                axes.plot(estimate.value, y, marker, color=style, markersize=4.8)
        handles.append(Line2D([], [], color=color(label, ""), marker=marker, label=_shortened(label)))
    if mark is not None:
        axes.axvline(mark, color="#333333", linewidth=0.8, linestyle=":")
    name_rows(axes, names)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}")
    axes.set_xlabel(xlabel)
    if len(series) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(series)), frameon=False)
    return figure


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows from the top; the name dmoerm is bold."""
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
    for name, text in zip(names, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if name == "dmoerm" else "normal")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_axisbelow(True)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
