"""The page with texts that are hard to lay out, wide and narrow, light and dark, and by axe-core's rules for access."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accessibility import findings

from .driving import FOLDER, score, write

HARD = [
    "<b>bold</b> <img src=x onerror='window.broken = 1'> <script>window.broken = 1</script>",
    "这是一个很长的回答，" * 60,
    "مرحبا بك، هذا نص طويل يُكتب من اليمين إلى اليسار. " * 8,
    "👩‍👩‍👧🎉 " * 60,
    "x" * 900,
    "two\n\n\nlines",
    "short",
    "plain words, many of them " * 40,
]
_LEAVES = "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.children.length"
_FONTS = f"() => {_LEAVES} && e.textContent.trim()).map(e => parseFloat(getComputedStyle(e).fontSize))"
_BEYOND = f"""() => {_LEAVES}).filter(e => !e.closest('.track') && e.getBoundingClientRect().right > innerWidth + 0.5)
    .map(e => e.outerHTML.slice(0, 200))"""


def answer_with_long_names(route: Any) -> None:
    (item,) = route.request.post_data_json["items"]
    names = ["n" * 40, "another_name_that_has_as_many_letters_as"]
    common = {"task": names[0], "route": dict.fromkeys(names, 0.5), "uncertainty": 0.5, "temperature": 1.0}
    rewards = range(len(item["responses"]))
    parts = [{names[0]: 2 - r / 2, "per_task": 2 - r / 2, names[1]: 0} for r in rewards]
    scores = [{"reward": 4 - r, "capabilities": dict.fromkeys(names, r / 2 - 7.5), **common} for r in rewards]
    scores = [score | {"contributions": each} for score, each in zip(scores, parts, strict=True)]
    wins = [[0.5 + (b - a) / 20 for b in rewards] for a in rewards]
    route.fulfill(json={"items": [{"id": "1", "scores": scores, "win_probabilities": wins}]})


@pytest.mark.parametrize(
    ("width", "scheme"),
    [(400, "dark"), (1280, "light"), (400, "light"), (1280, "dark")],
)
@pytest.mark.slow
def test_hard_texts_break_nothing(visit: Callable[..., Any], width: int, scheme: str) -> None:
    page = visit(width=width, scheme=scheme)
    assert findings(page) == []
    page.route("**/v1/score", answer_with_long_names)
    write(page, *HARD, prompt="prompt " * 300)
    score(page)
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert page.evaluate(_BEYOND) == []
    assert min(page.evaluate(_FONTS)) >= 12
    assert findings(page) == []
    page.get_by_role("textbox", name="Response G").fill(" ")
    page.get_by_role("button", name="Score again").click()
    page.get_by_role("alert").first.wait_for()
    assert findings(page) == [], "what is stale can still be read"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark))) < 200) == (scheme == "dark")
    assert page.locator(".snippet", has_text="<script>").inner_text().startswith("<b>bold</b> <img src=x")
    assert page.locator("#sections").locator("img, script, b b").count() == 0
    assert page.evaluate("window.broken === undefined")


def test_axe_is_awake(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate("document.getElementById('copy').replaceChildren()")
    assert any(finding.startswith("button-name (critical)") for finding in findings(page))


def test_a_file_is_scored_by_keyboard_alone(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Hi!", "responses": ["Hello."]}\n{}\n', encoding="utf-8")
    field = page.get_by_label("File", exact=True)
    field.set_input_files(file)  # the dialog is the browser's
    page.get_by_role("button", name="Start").click(trial=True)  # waits until it is enabled
    field.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    said = "Scored 1 prompt with 1 response. 1 row skipped."
    page.locator("#file-status[role=status]", has_text=said).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Save rows"
    assert findings(page) == []


def test_it_is_light_and_loads_nothing_from_elsewhere() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.is_file()}
    assert sum(len(text.encode()) for text in texts.values()) < 66_000
    foreign = re.compile(r"https?:|@import|innerHTML|insertAdjacentHTML")
    assert [name for name, text in texts.items() if foreign.search(text)] == []
    assert not re.search(r"\sstyle=|\son\w+=|<script>", texts["index.html"])
