"""The view data of report.html: plain text and numbers. The templates hold all markup and escape every string.

Section (one results file) → Block (one title) → text, Table, PlotGrid, Code and Fold
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Attributes:
        text: the formatted number.
        detail: a smaller second line, such as an interval.
        shade: −1 … 1, the background: blue above 0, orange below 0; None: no background.
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
        rows: a text in place of a row is a heading of the rows below it.
        summaries: names of rows that a line separates from those above.
    """

    kind: ClassVar = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[TableRow | str]
    summaries: Sequence[str] = ()

    @property
    def numeric(self) -> set[int]:
        """The columns that hold numbers."""
        rows = [row for row in self.rows if not isinstance(row, str)]
        return {i for row in rows for i, entry in enumerate(row) if isinstance(entry, Number)}

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass(frozen=True)
class PlotGrid:
    """Plots side by side if the screen is wide enough, otherwise one below the other.

    Attributes:
        label: what the plots show: the alternative text, to which each plot's title is added.
        plots: the title above each plot → its SVG document.
        wide: at most two plots stand side by side.
        title: a heading above the plots.
    """

    kind: ClassVar = "plots"
    label: str
    plots: Mapping[str, str]
    wide: bool = False
    title: str = ""

    def __bool__(self) -> bool:
        return bool(self.plots)


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font; line breaks are kept."""

    kind: ClassVar = "code"
    text: str

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True)
class Fold:
    """Contents that are hidden until the reader opens their summary."""

    kind: ClassVar = "fold"
    summary: str
    contents: Sequence[Content]

    def __bool__(self) -> bool:
        return bool(visible(self.contents))


Content = str | Table | PlotGrid | Code | Fold


@dataclass(frozen=True)
class Block:
    """A part of a section with its own entry in the table of contents."""

    title: str
    contents: Sequence[Content]


@dataclass(frozen=True)
class Section:
    """What the page shows of one results file; `lead` states the main result, one paragraph a text."""

    title: str
    lead: Sequence[str]
    blocks: Sequence[Block]


def visible(contents: Iterable[Content]) -> list[Content]:
    """Drop empty contents; return nothing if only text remains."""
    kept = [content for content in contents if content]
    return kept if any(not isinstance(content, str) for content in kept) else []


def make_section(title: str, lead: Iterable[str], blocks: Iterable[tuple[str, Iterable[Content]]]) -> Section:
    """Build a section from titles and contents; leave out blocks that have nothing to show."""
    built = [Block(name, visible(contents)) for name, contents in blocks]
    return Section(title, [text for text in lead if text], [block for block in built if block.contents])
