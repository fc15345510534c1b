"""What the page looks like with texts that are hard to lay out, wide and narrow, light and dark; and what it weighs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

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
_CONTRASTS = f"""() => {{
    const pen = new OffscreenCanvas(1, 1).getContext('2d', {{willReadFrequently: true}});
    const luminance = (colors) => {{
        pen.clearRect(0, 0, 1, 1);
        for (const color of colors) {{ pen.fillStyle = color; pen.fillRect(0, 0, 1, 1) }}
        const parts = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    }};
    return {_LEAVES} && e.textContent.trim() && !e.matches('option, .unseen, .unseen *')).map(e => {{
        const grounds = [];
        for (let up = e; up; up = up.parentElement) grounds.unshift(getComputedStyle(up).backgroundColor);
        const pair = [luminance(grounds), luminance([...grounds, getComputedStyle(e).color])].sort((a, b) => b - a);
        return [(pair[0] + 0.05) / (pair[1] + 0.05), e.outerHTML.slice(0, 120)];
    }}).filter(([ratio]) => ratio < 4.5);
}}"""


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (400, "dark"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1280, "light"), (400, "light"), (1280, "dark"))),
    ],
)
def test_hard_texts_break_nothing(visit: Callable[..., Any], width: int, scheme: str) -> None:
    page = visit(width=width, scheme=scheme)
    page.route("**/v1/score", _answer_with_long_names)
    write(page, *HARD, prompt="prompt " * 300)
    score(page)
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert page.evaluate(_BEYOND) == []
    assert min(page.evaluate(_FONTS)) >= 12
    assert page.evaluate(_CONTRASTS) == []
    page.get_by_role("textbox", name="Response G").fill("edited")
    assert page.evaluate(_CONTRASTS) == []  # what is stale can still be read
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark))) < 200) == (scheme == "dark")
    assert page.locator(".snippet", has_text="<script>").inner_text().startswith("<b>bold</b> <img src=x")
    assert page.locator("#sections").locator("img, script, b b").count() == 0
    assert page.evaluate("window.broken === undefined")


def _answer_with_long_names(route: Any) -> None:
    (item,) = route.request.post_data_json["items"]
    names = ["n" * 40, "another_name_that_has_as_many_letters_as"]
    common = {"task": names[0], "route": dict.fromkeys(names, 0.5), "uncertainty": 0.5, "temperature": 1.0}
    rewards = range(len(item["responses"]))
    scores = [{"reward": 4 - r, "capabilities": dict.fromkeys(names, r / 2 - 7.5), **common} for r in rewards]
    wins = [[0.5 + (b - a) / 20 for b in rewards] for a in rewards]
    items = [{"id": "1", "scores": scores, "win_probabilities": wins}]
    route.fulfill(json={"model": "tiny", "items": items, "usage": {"tokens": 1}})


def test_it_is_light_and_loads_nothing_from_elsewhere() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 64_000
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert not [
        name for name, text in texts.items() if re.search(r"https?:|@import|innerHTML|insertAdjacentHTML", text)
    ]
    assert not re.search(r"\sstyle=|\son\w+=|<script>", texts["index.html"])
