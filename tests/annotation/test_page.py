"""The page as annotators use it: in Chromium, against the real command, which is killed in the middle."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import free_port, wait_until_ready

from dmoerm.taxonomy import load_taxonomy

ROWS = [
    {
        "task": "chitchat",
        "prompt": "I failed my exam.",
        "responses": ["Oh no, I am so sorry! What happened?", "The exam took place."],
    },
    {
        "task": "objective_qa",
        "prompt": [
            {"role": "user", "content": "Why is the sky blue?"},
            {"role": "assistant", "content": "Rayleigh scattering."},
            {"role": "user", "content": "<b>Explain</b> that <script>window.broken = 1</script>"},
        ],
        "responses": ["<img src=x onerror='window.broken = 1'>", "x" * 400, "مرحبا بك، هذا نص طويل"],
    },
]
TAXONOMY = load_taxonomy("paper-en").first_capabilities(2)
QUESTIONS = (1 + 3) * (1 + 2)  # four pairs
PICTURES_VARIABLE = "DMOERM_PAGE_PICTURES"


@contextlib.contextmanager
def annotating(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [Path(sys.executable).with_name("dmoerm"), "annotate", "mine.jsonl", "--taxonomy", "mine.yaml"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=folder, stdout=log, stderr=log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
        yield process
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(TAXONOMY.to_yaml(), encoding="utf-8")
    return tmp_path


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens the page; nothing may fail on it, and it may load nothing from other hosts."""
    said: list[str] = []
    contexts: list[Any] = []

    def open_page(url: str, width: int = 1280, scheme: str = "light") -> Any:
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a machine may be busy
        page.on("console", lambda message: "ERR_CONNECTION" in message.text or said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda sent: sent.url.startswith(("data:", url.partition("?")[0])) or said.append(sent.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def answered(page: Any) -> int:
    return int(page.locator("#count").inner_text().split()[0])


def press(page: Any, key: str) -> None:
    """Press a key and wait for the answer."""
    before = page.locator("#status").inner_text(), page.locator("#count").inner_text()
    page.keyboard.press(key)
    page.wait_for_function("before => document.getElementById('count').innerText !== before", arg=before[1], polling=20)


def test_two_annotators_and_a_server_that_is_killed(visit: Callable[..., Any], project: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with annotating(project, port) as process:
        anna, ben = visit(url), visit(f"{url}?annotator=Ben", width=400, scheme="dark")
        anna.get_by_label("Your name").fill(" Anna ")
        anna.keyboard.press("Enter")
        anna.locator("#work").wait_for()
        ben.locator("#work").wait_for()
        assert anna.locator("#question-title").inner_text() == "Overall (1 of 3)"
        for count, key in enumerate("120", 1):
            press(anna, key)
            assert answered(anna) == count
        assert re.match(r"Saved, .+: Equally good\. Next: Overall \(1 of 3\)", anna.locator("#status").inner_text())
        for key in ("ArrowLeft", "ArrowRight", "s", "0"):
            press(ben, key)
        ben.get_by_role("row", name="Anna, Ben overall 1").wait_for()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        anna.keyboard.press("1")
        anna.get_by_role("alert").get_by_text("The server cannot be reached.").wait_for()
        assert answered(anna) == 3
    with annotating(project, port):
        anna.get_by_role("button", name="Try again").click()  # the answer that was not saved is sent again
        anna.locator("#count", has_text=re.compile("^4 of")).wait_for()
        assert not anna.get_by_role("alert").is_visible()
        ben.reload()
        ben.locator("#work").wait_for()
        assert answered(ben) == 4
        press(anna, "u")
        assert answered(anna) == 3
        for page, keys in (anna, "12"), (ben, "102s"):
            while page.locator("#work").is_visible():
                press(page, keys[answered(page) % len(keys)])
            page.locator("#end").wait_for()
            assert page.locator("#count").inner_text() == f"{QUESTIONS} of {QUESTIONS}"
        assert anna.evaluate("window.broken === undefined")
    with sqlite3.connect(project / "mine.annotations.sqlite") as store:
        counts = dict(store.execute("SELECT annotator, count(*) FROM answers GROUP BY annotator"))
    assert counts == {"Anna": QUESTIONS, "Ben": QUESTIONS}


_FOCUSED = "[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]"


@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1280, "light", marks=pytest.mark.slow), (400, "dark")])
def test_it_is_readable_and_reachable_by_tab(
    served_page: str, visit: Callable[..., Any], width: int, scheme: str
) -> None:
    page = visit(f"{served_page}?annotator={scheme}", width=width, scheme=scheme)
    page.locator("#work").wait_for()
    assert page.evaluate("document.activeElement.id") == "question-title"
    reached = []
    for _ in range(5):  # four answers and the box of the shortcuts; there is nothing to undo yet
        page.keyboard.press("Tab")
        text, outline = page.evaluate(_FOCUSED)
        assert outline != "none"
        reached.append(" ".join(text.split()))
    assert reached[:4] == ["1 Left is better", "0 Equally good", "2 Right is better", "S Skip"]
    page.get_by_role("button", name="Left is better").focus()
    press(page, "Enter")
    assert "Left is better" in page.evaluate(_FOCUSED)[0]  # the focus stays for the next question
    page.get_by_label("Keyboard shortcuts").uncheck()
    page.keyboard.press("2")
    page.wait_for_timeout(100)
    assert answered(page) == 1
    page.get_by_label("Keyboard shortcuts").check()
    while page.locator("#left").inner_text()[:4] not in ("<img", "xxxx"):
        press(page, "1")
    assert page.locator("#work").locator("img, script, b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")


@pytest.fixture
def served_page(project: Path) -> Iterator[str]:
    port = free_port()
    with annotating(project, port):
        yield f"http://127.0.0.1:{port}/"


@pytest.mark.skipif(PICTURES_VARIABLE not in os.environ, reason=f"{PICTURES_VARIABLE} is not set")
def test_pictures_for_the_docs(served_page: str, visit: Callable[..., Any]) -> None:
    from PIL import Image

    docs = Path(__file__).resolve().parents[2] / "docs"
    ben = visit(f"{served_page}?annotator=Ben")
    ben.locator("#work").wait_for()
    for _ in range(QUESTIONS):
        press(ben, "1" if ben.locator("#left").inner_text() < ben.locator("#right").inner_text() else "2")
    for width, scheme, name in (1280, "light", "annotate.png"), (400, "dark", "annotate-400.png"):
        page = visit(f"{served_page}?annotator=Anna", width=width, scheme=scheme)
        page.locator("#work").wait_for()
        for key in "1202" if width > 400 else "":
            press(page, key)
        while "exam" not in page.locator("#turns").inner_text():
            press(page, "1")
        page.set_viewport_size({"width": width, "height": page.evaluate("document.body.scrollHeight")})
        page.evaluate("document.activeElement.blur()")
        picture = Image.open(io.BytesIO(page.screenshot()))
        picture.quantize(128).save(docs / name, optimize=True)
        assert (docs / name).stat().st_size < 100_000
