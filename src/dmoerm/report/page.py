"""Render the templates: report.html from its sections, and the environment that the model card shares.

The page is one text that loads nothing. Each plot is an SVG document of its own in a data URL, so that the ids of two
plots (clip paths, glyphs) cannot collide.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .view import Section

_WHITE, _BLUE, _ORANGE = (255, 255, 255), (8, 81, 156), (179, 88, 6)


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Render the whole page: its title, a table of contents and the sections."""
    environment = template_environment(autoescape=True)
    environment.filters |= {"data_url": _data_url, "heat": heat_colors}
    numbered = list(zip(_numbered([section.title for section in sections]), sections, strict=True))
    return environment.get_template("page.html").render(title=title, sections=numbered)


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


def _numbered(titles: Sequence[str]) -> list[str]:
    """Number the titles that occur more than once."""
    return [f"{t} ({titles[: i + 1].count(t)})" if titles.count(t) > 1 else t for i, t in enumerate(titles)]


def _data_url(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def heat_colors(shade: float) -> tuple[str, str]:
    """Return a background for a shade in −1 … 1, and black or white for its text, whichever has more contrast."""
    end = _BLUE if shade >= 0 else _ORANGE
    ground = [round(low + (high - low) * min(abs(shade), 1.0)) for low, high in zip(_WHITE, end, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*ground), "#000000" if luminance(ground) > 0.179 else "#ffffff"


def luminance(color: Sequence[int]) -> float:
    """Return the relative luminance as WCAG defines it; black and white contrast equally with 0.179."""
    red, green, blue = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
