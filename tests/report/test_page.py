"""The page: every text of the results is text on it, and its plots are documents of their own."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hostile import HOSTILE, with_markup
from jinja2 import UndefinedError
from report_samples import comparison
from sample_results import DIFFERENCE, ESTIMATE, example

from dmoerm.report import report_html
from dmoerm.report.page import Code, Fold, Plots, Table, heat_color, render_page, template_environment

_DOCUMENT = "html head meta title link style body header nav main section h1 h2 p ul li a dl dt dd b"
_PARTS = "table caption thead tbody tr th td span small details summary pre div figure figcaption img"
TAGS = {*_DOCUMENT.split(), *_PARTS.split()}
SMALL = ("general", "dmoerm"), ("chitchat",)


class Tags(HTMLParser):
    """Collects a page's tags, attributes and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src")}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "results",
    [
        comparison(("general", "dmoerm", "other"), ("chitchat", "objective_qa"), derived_tasks=("chitchat",)),
        example(derived_tasks=["chitchat"], gold_tasks=["objective_qa"], config={"name": "mine"}),
    ],
    ids=lambda results: type(results).__name__,
)
def test_every_string_of_the_results_is_escaped(results: Any, undrawn: None) -> None:
    page = Tags()
    markup = report_html(with_markup(results))
    page.feed(markup)
    assert "<script" not in markup
    assert markup.count(html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) > 10
    assert HOSTILE in page.text
    assert page.tags <= TAGS
    assert not {name for name in page.attributes if name.startswith("on")}
    assert {link[:5] for link in page.links if not link.startswith("#")} == {"data:"}


def test_a_name_in_a_plot_is_text() -> None:
    measured = {method: {HOSTILE: ESTIMATE, "mean": ESTIMATE} for method in ("general", "dmoerm")}
    paired = {"dmoerm - general": {HOSTILE: DIFFERENCE, "mean": DIFFERENCE}}
    markup = report_html(example(accuracy=measured, paired=paired, capabilities={"chitchat": {HOSTILE: ESTIMATE}}))
    images = re.findall(r'data:image/svg\+xml;base64,([^"]+)', markup)
    assert len(images) == 3
    for image in images:
        tags = [str(element.tag) for element in ElementTree.fromstring(base64.b64decode(image)).iter()]
        assert not [tag for tag in tags if tag.endswith("script")]


@pytest.mark.parametrize("results", [example(), comparison(*SMALL)], ids=lambda results: type(results).__name__)
def test_the_same_results_give_the_same_page_whose_ids_are_unique(results: Any) -> None:
    markup = report_html(results)
    assert markup == report_html(type(results).model_validate_json(results.to_json()))
    assert "<svg" not in markup, "inline, clip paths of two plots might share an id"
    ids = re.findall(r' id="([^"]+)"', markup)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', markup)) <= set(ids)
    assert set(re.findall(r'aria-labelledby="([^"]+)"', markup)) <= set(ids)
    images = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"', markup)
    assert len(images) == markup.count("<img")
    for _, image in images:
        svg = ElementTree.fromstring(base64.b64decode(image))
        inner = [element.get("id") for element in svg.iter() if element.get("id")]
        assert len(inner) == len(set(inner))


def test_black_text_on_a_heat_map_is_legible() -> None:
    for share in range(-100, 101):
        color = heat_color(share / 100)
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]  # WCAG
        assert (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05) / 0.05 > 7, share


def test_an_undefined_name_in_a_template_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        template_environment(autoescape=True).from_string("{{ titel }}").render(title="x")


def test_blocks_without_contents_are_left_out() -> None:
    empty = [Table("t", ["a"], []), Plots("p", {}), Fold("f", ["text", Table("t", ["a"], [])])]
    page = render_page("", "x", [], [("empty", ["text", *empty]), ("full", ["text", *empty, Code("code")])])
    assert re.findall(r"<h2[^>]*>([^<]+)", page) == re.findall(r'<a href="#[^>]*>([^<]+)', page) == ["full"]
    assert "<table" not in page
    assert "<details" not in page
