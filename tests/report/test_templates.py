"""Every text of a results file is text on the page, whatever it contains."""

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
from dmoerm.report.page import template_environment
from dmoerm.report.view import Block, Code, Fold, PlotGrid, Section, Table, make_section

_DOCUMENT = "html head meta title link style body header nav main section h1 h2 h3 h4 p ul li a"
_PARTS = "table caption thead tbody tr th td span small details summary pre div figure figcaption img"
TAGS = {*_DOCUMENT.split(), *_PARTS.split()}


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


SMALL = ("general", "dmoerm", "other"), ("chitchat", "objective_qa")


@pytest.mark.parametrize(
    "results",
    [
        comparison(*SMALL, derived_tasks=("chitchat",)),
        example(derived_tasks=["chitchat"], gold_tasks=["objective_qa"], config={"name": "mine"}),
    ],
    ids=lambda results: type(results).__name__,
)
def test_every_string_of_a_results_file_is_escaped(results: Any, undrawn: None) -> None:
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
    assert len(images) == 4
    for image in images:
        tags = [str(element.tag) for element in ElementTree.fromstring(base64.b64decode(image)).iter()]
        assert not [tag for tag in tags if tag.endswith("script")]


def test_an_undefined_name_in_a_template_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        template_environment(autoescape=True).from_string("{{ titel }}").render(title="x")


def test_blocks_without_contents_are_left_out() -> None:
    empty = [Table("t", ["a"], []), PlotGrid("p", {}), Code(""), Fold("f", ["text", Table("t", ["a"], [])])]
    section = make_section("title", ["", "lead"], [("empty", ["text", *empty]), ("full", ["text", *empty, Code("x")])])
    assert section == Section("title", ["lead"], [Block("full", ["text", Code("x")])])
