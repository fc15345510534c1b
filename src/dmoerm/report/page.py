"""The page: its view data, which is plain text and numbers, and the templates, which escape every string.

page → findings, and blocks (a title each) → text, Table, Plots, Code and Fold

The page is one text that loads nothing. Each plot is an SVG document of its own in a data URL, so that the ids of two
plots (clip paths, glyphs) cannot collide.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

_BLUE, _ORANGE = (120, 170, 225), (240, 180, 120)  # light enough for black text


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Attributes:
        text: the formatted number.
        detail: a smaller second line, such as an interval.
        shade: −1 … 1, the background: blue above 0, orange below 0; None for no background.
    """

    text: str
    detail: str = ""
    shade: float | None = None


@dataclass(frozen=True)
class MethodName:
    """A method's name, with a dot in its color in the plots. A strong row is highlighted."""

    text: str
    color: str
    strong: bool = False


TableRow = Sequence[str | Number | MethodName]
"""The first entry names the row. Text is aligned left, a `Number` is aligned right."""


@dataclass(frozen=True)
class Table:
    """A table that scrolls horizontally on a narrow screen.

    Attributes:
        caption: what the table shows.
        header: the names of the columns; the first column holds the names of the rows.
        summaries: names of rows that a line separates from those above.
    """

    kind: ClassVar = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[TableRow]
    summaries: Sequence[str] = ()

    @property
    def numeric(self) -> set[int]:
        return {i for row in self.rows for i, entry in enumerate(row) if isinstance(entry, Number)}

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass(frozen=True)
class Plots:
    """Plots side by side if the screen is wide enough, otherwise one below the other.

    Attributes:
        label: what the plots show: the alternative text, to which each plot's title is added.
        plots: the title above each plot → its SVG document.
    """

    kind: ClassVar = "plots"
    label: str
    plots: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.plots)


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font; line breaks are kept."""

    kind: ClassVar = "code"
    text: str


@dataclass(frozen=True)
class Fold:
    """Contents that are hidden until the reader opens their summary."""

    kind: ClassVar = "fold"
    summary: str
    contents: Sequence[Content]

    def __bool__(self) -> bool:
        return bool(visible(self.contents))


Content = str | Table | Plots | Code | Fold


Block = tuple[str, Iterable[Content]]
"""A title, which the table of contents lists, and its contents; a block without a table or plot is left out."""


def visible(contents: Iterable[Content]) -> list[Content]:
    """Drop empty contents; return nothing if only text remains."""
    kept = [content for content in contents if content]
    return kept if any(not isinstance(content, str) for content in kept) else []


def render_page(origin: str, headline: str, findings: Iterable[tuple[str, str, str]], blocks: Iterable[Block]) -> str:
    """Return the page; blocks that have nothing to show are left out.

    Args:
        origin: folder, data and date; may be empty.
        headline: the verdict.
        findings: label, text and explanation of each fact of the first screen; the last two may be empty.
    """
    environment = template_environment(autoescape=True)
    environment.filters |= {"data_url": _data_url, "heat": heat_color}
    shown = [(name, kept) for name, contents in blocks if (kept := visible(contents))]
    page = environment.get_template("page.html")
    return page.render(origin=origin, headline=headline, findings=findings, blocks=shown)


def template_environment(**options: Any) -> Environment:
    """Create an environment for this package's templates in which an undefined name is an error."""
    return Environment(
        loader=PackageLoader("dmoerm.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


def _data_url(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def heat_color(shade: float) -> str:
    """Return the background for a shade in −1 … 1, on which black text is legible."""
    end, part = _BLUE if shade >= 0 else _ORANGE, min(abs(shade), 1.0)
    return "#{:02x}{:02x}{:02x}".format(*(round(255 + (c - 255) * part) for c in end))
