"""What asks the served model: a client, a browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

_REFUSED = re.compile(r"\b(401|422|429|502|503) \(")  # browsers say it on the console, whatever the page does


@pytest.fixture(scope="session")
def http(served_url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served_url, timeout=30) as client:
        yield client


@pytest.fixture
def visit(browser: Any, served_url: str) -> Iterator[Callable[..., Any]]:
    """A function that opens the page; at the end nothing may have failed, complained or asked anybody else."""
    said: list[str] = []
    contexts: list[Any] = []

    def open_page(fragment: str = "", width: int = 1280, scheme: str = "light", at: str = served_url) -> Any:
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=at)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a slow machine is not a failure
        page.on("console", lambda message: _REFUSED.search(message.text) or said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda sent: sent.url.startswith(("data:", f"{at}/", f"blob:{at}/")) or said.append(sent.url)
        )
        page.goto(f"{at}/{fragment}")
        page.get_by_role("button", name="Score", exact=True).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
