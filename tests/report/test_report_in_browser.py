"""The page in Chromium: on a wide screen and on a phone, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accessibility import findings
from hostile import HOSTILE, with_markup
from report_samples import comparison
from sample_results import example

from dmoerm.report import write_report

_VISIBLE = """selector => [...document.querySelectorAll(selector)].filter(e => !e.closest('details:not([open])'))
    .map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])"""
_FONTS = """() => [...document.querySelectorAll('body *')].filter(e => e.textContent.trim() && e.children.length == 0)
    .map(e => parseFloat(getComputedStyle(e).fontSize))"""

_FOLLOWED = """() => [...document.querySelectorAll('nav a')].map(link => {
    scrollTo(0, 0)
    link.click()
    const target = document.querySelector(link.getAttribute('href'))
    return [link.textContent, target.querySelector('h2').textContent, target.getBoundingClientRect().top]
})"""


@pytest.fixture(scope="module", params=["comparison", "run"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, comparison() if request.param == "comparison" else example(folder="runs/mine"))
    return path


@pytest.fixture(
    params=[pytest.param((1280, "light"), marks=pytest.mark.slow), (400, "dark")],
    ids=lambda param: f"{param[0]} {param[1]}",
)
def opened(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[tuple[Any, list[str]]]:
    """The open page, and its requests and console messages."""
    width, scheme = request.param
    size = {"width": width, "height": 900}
    page = browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url))
    page.on("requestfailed", lambda failed: messages.append(f"failed: {failed.url}"))
    page.goto(report.as_uri())
    yield page, messages
    page.close()


def test_the_page_can_be_read(opened: tuple[Any, list[str]], report: Path) -> None:
    page, messages = opened
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert min(page.evaluate(_FONTS)) >= 12
    for selector in ("h1", "h2", "figure", "img", "table"):
        sizes = page.evaluate(_VISIBLE, selector)
        assert sizes, selector
        assert min(min(size) for size in sizes) > 10, selector
        assert selector == "table" or max(size[0] for size in sizes) <= width, selector
    images = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.width])")
    assert all(complete and shown >= 0.75 * drawn > 0 for complete, drawn, shown in images), "text of plots too small"
    assert messages == [report.as_uri()], "the page loads something or logs an error"


def test_the_first_screen_has_the_verdict_and_breaks_no_rule_of_access(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    page.set_viewport_size({"width": page.viewport_size["width"], "height": 800})
    for selector in ("h1", "main > p", "dd"):
        bottom = page.evaluate("s => document.querySelector(s).getBoundingClientRect().bottom", selector)
        assert bottom < 600, selector
    assert page.evaluate("document.querySelector('h1').textContent").startswith(("The mixture", "So far, the mixture"))
    assert findings(page) == []


def test_contents_lead_to_their_sections(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    names = page.evaluate("[...document.querySelectorAll('main h2')].map(e => e.textContent)")
    links = page.evaluate(_FOLLOWED)
    assert [text for text, *_ in links] == names
    for text, title, top in links:
        assert title == text
        assert 0 <= top < 900, text


def test_wide_tables_scroll_by_keyboard(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    wide = page.evaluate("[...document.querySelectorAll('.scroll')].findIndex(e => e.scrollWidth > e.clientWidth + 40)")
    if wide >= 0:
        table = page.locator(".scroll").nth(wide)
        table.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("e => e.scrollLeft > 0", arg=table.element_handle(), timeout=3000)
    assert page.viewport_size["width"] > 400 or wide >= 0 or "runs/mine" in page.title()


def test_markup_in_names_runs_nothing(browser: Any, tmp_path: Path, undrawn: None) -> None:
    small = ("general", "dmoerm", "other"), ("chitchat", "objective_qa")
    path = tmp_path / "report.html"
    write_report(path, with_markup(comparison(*small)))
    page = browser.new_page()
    events: list[str] = []
    page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: events.append(message.text))
    page.on("request", lambda request: events.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.scripts.length") == 0
    assert HOSTILE in page.text_content("main")
    assert events == [path.as_uri()]
    page.close()
