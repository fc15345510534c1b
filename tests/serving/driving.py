"""The page's fields and buttons, as its tests use them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dmoerm

FOLDER = Path(dmoerm.__file__).parent / "serving" / "page"
PROMPT = "I failed my exam."
RESPONSES = ["Oh no, I am so sorry! What happened?", "The exam took place.", "Say something nice about it: 你好 🎉"]


def write(page: Any, *responses: str, prompt: str = PROMPT) -> None:
    page.get_by_role("textbox", name="Turn 1, user").fill(prompt)
    while page.get_by_role("textbox", name="Response").count() < len(responses):
        page.get_by_role("button", name="Add response").click()
    for letter, text in zip("ABCDEFGH", responses, strict=False):
        page.get_by_role("textbox", name=f"Response {letter}").fill(text)


def enter(field: Any, text: str) -> None:
    field.fill(text)
    field.press("Enter")


def score(page: Any) -> None:
    page.get_by_role("button", name=re.compile("^Score")).click()
    page.locator("#results[aria-busy=false]:not(.stale) .ranking").wait_for()


def order(page: Any) -> str:
    return "".join(page.locator(".ranking .letter").all_text_contents())
