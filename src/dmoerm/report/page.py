"""The shell of report.html and what its sections are written with: tables, heat maps, plots, folded details.

Section (one of a results file) → blocks (a title and HTML each) → `page`: one text that loads nothing from anywhere

Every function here takes plain text and escapes it; only `Block.content` and `Section.lead` are HTML already.
A plot is an SVG document of its own, in a data URL: its ids (clip paths, glyphs) cannot meet those of another plot,
however many a page has.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("report.css")
_LIGHT, _BLUE, _ORANGE = (255, 255, 255), (8, 81, 156), (179, 88, 6)


@dataclass(frozen=True)
class Block:
    """A part of a section, with its own entry in the table of contents; `content` is HTML."""

    title: str
    content: str


@dataclass(frozen=True)
class Section:
    """What a page shows of one results file; `lead` is HTML: what the file says in a sentence or two."""

    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Attributes:
        text: as people read it.
        detail: what goes with it, smaller, on a line of its own: an interval.
        share: −1 … 1, how strongly the cell is coloured: blue above 0, orange below; None: not at all.
    """

    text: str
    detail: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Label:
    """A row's name, with a dot of its colour in the plots; a strong row stands out."""

    text: str
    colour: str
    strong: bool = False


Row = Sequence[str | Cell | Label]
"""The first is the row's name; text is left-aligned, a `Cell` is right-aligned."""


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page: its title, a table of contents, and the sections one below the other."""
    named = list(zip(_titles(sections), sections, strict=True))
    contents = "".join(_entry(f"s{i}", name, section) for i, (name, section) in enumerate(named, 1))
    body = "\n".join(_section(f"s{i}", name, section) for i, (name, section) in enumerate(named, 1))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body>\n<header><h1>{escape(title)}</h1>"
        "<p>Intervals are 95 % bootstrap intervals over prompts, unless a table says otherwise.</p></header>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n<main>\n{body}\n</main>\n</body></html>\n'
    )


def _titles(sections: Sequence[Section]) -> list[str]:
    """Two sections of the same title are told apart by a number."""
    titles = [section.title for section in sections]
    return [f"{t} ({titles[: i + 1].count(t)})" if titles.count(t) > 1 else t for i, t in enumerate(titles)]


def _entry(place: str, name: str, section: Section) -> str:
    inner = "".join(
        f'<li><a href="#{place}-{i}">{escape(block.title)}</a></li>' for i, block in enumerate(section.blocks, 1)
    )
    return f'<li><a href="#{place}">{escape(name)}</a><ul>{inner}</ul></li>'


def _section(place: str, name: str, section: Section) -> str:
    blocks = "\n".join(
        f'<section id="{place}-{i}" aria-labelledby="{place}-{i}-title">'
        f'<h3 id="{place}-{i}-title">{escape(block.title)}</h3>\n{block.content}</section>'
        for i, block in enumerate(section.blocks, 1)
    )
    heading = f'<h2 id="{place}-title">{escape(name)}</h2>'
    return f'<section id="{place}" aria-labelledby="{place}-title">{heading}\n{section.lead}\n{blocks}</section>'


# --- what blocks are made of ---------------------------------------------------------------------------------------


def paragraph(text: str) -> str:
    """One paragraph; empty text: nothing."""
    return f"<p>{escape(text)}</p>" if text else ""


def details(summary: str, content: str) -> str:
    """HTML that is folded away under a summary."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def preformatted(text: str) -> str:
    """Text as it is, lines kept."""
    return f"<pre>{escape(text)}</pre>"


def heading(text: str) -> str:
    """A heading inside a block."""
    return f"<h4>{escape(text)}</h4>"


def plots(images: Iterable[tuple[str, str]], label: str, wide: bool = False) -> str:
    """Plots side by side where there is room, else one below the other.

    Args:
        images: what stands above each, and its SVG.
        label: what they show, for those who cannot see them; what stands above a plot is added.
        wide: at most two side by side.
    """
    figures = "".join(_figure(title, svg, f"{label}: {title}" if title else label) for title, svg in images)
    return f'<div class="plots{" wide" if wide else ""}">{figures}</div>' if figures else ""


def _figure(title: str, svg: str, label: str) -> str:
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    content = base64.b64encode(svg.encode()).decode()
    return f'<figure>{caption}<img alt="{escape(label)}" src="data:image/svg+xml;base64,{content}"></figure>'


def table(caption: str, header: Sequence[str], rows: Iterable[Row | str], summaries: Sequence[str] = ()) -> str:
    """A table that scrolls by itself, by keyboard too, where the screen is narrower.

    Args:
        caption: what it shows.
        header: the columns' names; the first is that of the rows' names.
        rows: a text in place of a row is the heading of the rows below it.
        summaries: names of rows that a line sets apart from those above.
    """
    rows = list(rows)
    numeric = {i for row in rows if not isinstance(row, str) for i, cell in enumerate(row) if isinstance(cell, Cell)}
    columns = "".join(
        f'<th scope="col"{_class("number" if i in numeric else "")}>{escape(name)}</th>'
        for i, name in enumerate(header)
    )
    lines = "".join(
        f'</tbody><tbody><tr><th class="group" scope="rowgroup" colspan="{len(header)}">{escape(row)}</th></tr>'
        if isinstance(row, str)
        else _line(row, summaries)
        for row in rows
    )
    body = f"<tbody>{lines}</tbody>".replace("<tbody></tbody>", "")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead>{body}</table></div>"
    )


def _line(row: Row, summaries: Sequence[str]) -> str:
    first, *others = row
    name = first if isinstance(first, str) else first.text
    kind = "strong" if isinstance(first, Label) and first.strong else "summary" if name in summaries else ""
    cells = f'<th scope="row">{_content(first)}</th>{"".join(map(_cell, others))}'
    return f"<tr{_class(kind)}>{cells}</tr>"


def _cell(cell: str | Cell | Label) -> str:
    if not isinstance(cell, Cell):
        long = isinstance(cell, str) and len(cell) > 30
        return f"<td{_class('text' if long else '')}>{_content(cell)}</td>"
    if cell.share is None:
        return f'<td class="number">{_content(cell)}</td>'
    ground, ink = _heat(cell.share)
    return f'<td class="number heat" style="background-color: {ground}; color: {ink}">{_content(cell)}</td>'


def _content(cell: str | Cell | Label) -> str:
    if isinstance(cell, Label):
        return f'<span class="swatch" style="background: {cell.colour}"></span>{escape(cell.text)}'
    if isinstance(cell, Cell):
        return escape(cell.text) + (f"<small>{escape(cell.detail)}</small>" if cell.detail else "")
    return escape(cell)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _heat(share: float) -> tuple[str, str]:
    """A background, and black or white for the text on it, whichever is easier to read."""
    end = _BLUE if share >= 0 else _ORANGE
    ground = [round(low + (high - low) * min(abs(share), 1.0)) for low, high in zip(_LIGHT, end, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*ground), "#000000" if _luminance(ground) > 0.179 else "#ffffff"


def _luminance(colour: Sequence[int]) -> float:
    """Relative luminance as WCAG defines it; black and white contrast equally with 0.179."""
    red, green, blue = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
