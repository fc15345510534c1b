"""The page for people with a screen reader or without a mouse: axe-core's rules, in every state of the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from .driving import RESPONSES, score, write

LEVELS = {"wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"}


def findings(page: Any) -> list[str]:
    """What axe-core reports against WCAG 2.2 AA or calls serious: the rule, its impact and the elements."""
    violations = Axe().run(page).response["violations"]
    counted = [each for each in violations if LEVELS & {*each["tags"]} or each["impact"] in ("serious", "critical")]
    return [f"{each['id']} ({each['impact']}): {[node['html'] for node in each['nodes']]}" for each in counted]


@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1280, "light", marks=pytest.mark.slow), (400, "dark")])
def test_axe_finds_nothing_serious(visit: Callable[..., Any], tmp_path: Path, width: int, scheme: str) -> None:
    page = visit(width=width, scheme=scheme)
    assert findings(page) == []
    write(page, *(RESPONSES * 3)[:8])
    page.get_by_label("Task").select_option("chitchat")
    score(page)
    page.locator("summary").click()
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Hi!", "responses": ["Hello."]}\n{}\n', encoding="utf-8")
    page.get_by_label("File", exact=True).set_input_files(file)
    page.get_by_role("button", name="Start").click()
    page.locator("#file-status", has_text="1 row skipped").wait_for()
    assert findings(page) == []
    page.get_by_role("textbox", name="Response C").fill(" ")
    page.get_by_role("button", name="Score again").click()
    page.get_by_role("alert").first.wait_for()
    assert findings(page) == []


def test_axe_is_awake(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate("document.getElementById('copy').replaceChildren()")
    assert any(finding.startswith("button-name (critical)") for finding in findings(page))


def test_a_file_is_scored_by_keyboard_alone(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Hi!", "responses": ["Hello."]}\n', encoding="utf-8")
    field = page.get_by_label("File", exact=True)
    field.set_input_files(file)  # the dialog is the browser's
    page.get_by_role("button", name="Start").click(trial=True)  # waits until it is enabled
    field.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#file-status[role=status]", has_text="Scored 1 prompt with 1 response.").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Save rows"
