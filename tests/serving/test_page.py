"""The page at / as people use it: in Chromium, against the real server, by mouse and by keyboard, wide and narrow."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import served

import dmoerm
from dmoerm.serving import ServingConfig, create_app

PICTURES_VARIABLE = "DMOERM_PAGE_PICTURES"  # a model's folder: the pictures in docs/ are made again with it
FOLDER = Path(dmoerm.__file__).parent / "serving" / "page"
PROMPT = "I failed my exam."
RESPONSES = ["Oh no, I am so sorry! What happened?", "The exam took place.", "Say something nice about it: 你好 🎉"]
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
_REFUSED = re.compile(r"\b(401|429) \(")  # browsers say it on the console, whatever the page does
_LEAVES = "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.children.length"
_FONTS = f"() => {_LEAVES} && e.textContent.trim()).map(e => parseFloat(getComputedStyle(e).fontSize))"
_BEYOND = f"""() => {_LEAVES}).filter(e => !e.closest('.track') && e.getBoundingClientRect().right > innerWidth + 0.5)
    .map(e => e.outerHTML.slice(0, 200))"""
_CONTRASTS = f"""() => {{
    const pen = new OffscreenCanvas(1, 1).getContext('2d', {{willReadFrequently: true}});
    const luminance = (colours) => {{
        pen.clearRect(0, 0, 1, 1);
        for (const colour of colours) {{ pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1) }}
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
_FOCUSED = """() => {
    const e = document.activeElement;
    return [e.getAttribute('aria-label') ?? e.labels?.[0]?.innerText.split('\\n').at(-1) ?? e.innerText,
            getComputedStyle(e).outlineStyle];
}"""


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Callable[..., Any]]:
    """A function that opens the page; at the end nothing may have failed, complained or asked anybody else."""
    said: list[str] = []
    contexts: list[Any] = []

    def open_page(fragment: str = "", width: int = 1280, scheme: str = "light", at: str = url) -> Any:
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=at)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: _REFUSED.search(message.text) or said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("data:", f"{at}/")) or said.append(asked.url))
        page.goto(f"{at}/{fragment}")
        page.get_by_role("button", name="Chit-chat").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def write(page: Any, *responses: str, prompt: str = PROMPT) -> None:
    page.get_by_role("textbox", name="Turn 1, user").fill(prompt)
    while page.get_by_role("textbox", name="Response").count() < len(responses):
        page.get_by_role("button", name="Add response").click()
    for letter, text in zip("ABCDEFGH", responses, strict=False):
        page.get_by_role("textbox", name=f"Response {letter}").fill(text)


def score(page: Any) -> None:
    page.get_by_role("button", name=re.compile("^Score")).click()
    page.locator("#results[aria-busy=false]:not(.stale) .ranking").wait_for()


def order(page: Any) -> str:
    return "".join(page.locator(".ranking .letter").all_text_contents())


def test_score_edit_and_score_again(visit: Callable[..., Any], trained_run: Any) -> None:
    page, model = visit(), trained_run.model
    task, capabilities = next(iter(model.config.tasks.items()))
    write(page, *RESPONSES)
    page.get_by_label("Task").select_option(task)
    score(page)
    scores = model.score(PROMPT, RESPONSES, task)
    places = sorted(range(3), key=lambda i: -scores[i].reward)
    assert order(page) == "".join("ABC"[i] for i in places)
    first, last = scores[places[0]], scores[places[-1]]
    shown = page.locator(".reward b").all_text_contents()
    assert [float(text.replace("−", "-")) for text in shown] == pytest.approx(
        [scores[i].reward for i in places], abs=0.01
    )
    wins = page.locator(".wins").last.text_content()
    assert re.match(r"[ABC] is .* [ABC]: \d+%$", wins)
    assert int(re.findall(r"\d+", wins)[0]) == pytest.approx(100 * first.win_probability(last), abs=1)
    assert page.locator(".capabilities tbody tr").count() == len(capabilities)
    assert page.locator(".capabilities .value").count() == 3 * len(capabilities)
    assert task.replace("_", " ") in page.get_by_role("region", name="Route").inner_text()

    swapped = list(RESPONSES)
    best, worst = places[0], places[-1]
    swapped[best], swapped[worst] = swapped[worst], swapped[best]
    write(page, *swapped)
    assert "Edited since" in page.locator("#status").text_content()
    write(page, *RESPONSES)
    assert "Edited since" not in page.locator("#status").text_content()  # the edit is undone
    write(page, *swapped)
    score(page)
    assert order(page)[0] == "ABC"[worst]
    assert order(page)[-1] == "ABC"[best]
    assert page.locator(".up").inner_text().startswith("▲2")
    assert page.locator(".down").inner_text().startswith("▼2")


def test_by_keyboard_alone(visit: Callable[..., Any]) -> None:
    page = visit(width=400)
    keys = page.keyboard

    def reach(name: str, key: str = "Tab") -> None:
        for _ in range(40):
            keys.press(key)
            focused, outline = page.evaluate(_FOCUSED)
            assert focused, "something without a name takes the focus"
            assert outline != "none", f"the focus on {focused} cannot be seen"
            if focused.startswith(name):
                return
        raise AssertionError(f"no way to {name}")

    reach("Turn 1, user")
    keys.type(PROMPT)
    reach("Response A")
    keys.type("The exam took place.")
    reach("Response B")
    keys.press("Control+Enter")
    assert "Response B is empty" in page.get_by_role("alert").first.text_content()
    keys.type("Oh no, I am so sorry!")
    reach("Add response")
    keys.press("Enter")
    keys.type("What happened?")
    reach("Remove response C", "Shift+Tab")
    keys.press("Enter")
    assert page.evaluate(_FOCUSED)[0].endswith("Response B")
    reach("Task")
    keys.press("ArrowDown")
    reach("Score")
    keys.press("Enter")
    page.locator(".ranking").wait_for()
    page.locator("#results-title:focus").wait_for()
    assert sorted(order(page)) == ["A", "B"]
    assert page.get_by_label("Task").input_value()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark"), (400, "light"), (1280, "dark")])
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
    assert page.locator("#found").locator("img, script, b b").count() == 0
    assert page.evaluate("window.broken === undefined")


def _answer_with_long_names(route: Any) -> None:
    (item,) = route.request.post_data_json["items"]
    names = ["n" * 40, "another_name_that_has_as_many_letters_as"]
    about = {"task": names[0], "route": dict.fromkeys(names, 0.5), "uncertainty": 0.5, "temperature": 1.0}
    rewards = range(len(item["responses"]))
    scores = [{"reward": 4 - r, "capabilities": dict.fromkeys(names, r / 2 - 7.5), **about} for r in rewards]
    wins = [[0.5 + (b - a) / 20 for b in rewards] for a in rewards]
    found = [{"id": "1", "scores": scores, "win_probabilities": wins}]
    route.fulfill(json={"model": "tiny", "items": found, "usage": {"tokens": 1}})


def test_a_link_reproduces_the_view(visit: Callable[..., Any]) -> None:
    page = visit()
    write(page, *RESPONSES)
    score(page)
    page.get_by_role("button", name="Copy link").click()
    page.get_by_text("Link copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    again = visit(link[link.index("#") :])
    again.locator(".ranking").wait_for()
    assert again.locator("#results").inner_text() == page.locator("#results").inner_text()
    assert again.get_by_role("textbox", name="Response C").input_value() == RESPONSES[2]
    assert "damaged" in visit("#bm90IGEgbGluaw").get_by_role("alert").last.inner_text()


def test_examples_and_the_way_back(visit: Callable[..., Any]) -> None:
    page = visit()
    write(page, *RESPONSES)
    for example in json.loads((FOLDER / "examples.json").read_text(encoding="utf-8")):
        page.get_by_role("button", name=example["name"]).click()
        page.locator(".snippet", has_text=example["responses"][0][:30]).wait_for()
        assert page.get_by_role("textbox", name="Turn").count() == len(example["prompt"])
        page.go_back()
        page.locator(".snippet", has_text=RESPONSES[0]).wait_for()


@pytest.mark.parametrize(
    ("text", "turns", "answer"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How are you?\n\nAssistant: Fine.", 3, "Fine."),
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 2, ""),
        ("Ask the\nHuman: who?", 1, ""),
    ],
)
def test_pasted_conversations_are_split(visit: Callable[..., Any], text: str, turns: int, answer: str) -> None:
    page = visit()
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    page.get_by_role("textbox", name="Turn 1, user").press("Control+v")
    assert page.get_by_role("textbox", name="Turn").count() == turns
    assert page.get_by_role("textbox", name="Response A").input_value() == answer


def test_a_key_is_asked_for_and_kept_out_of_the_link(visit: Callable[..., Any], trained_run: Any) -> None:
    with served(create_app(trained_run.model, ServingConfig(api_key="open-sesame"), "tiny")) as url:
        page = visit(at=url)
        write(page, *RESPONSES[:2])
        for key, said in ("", "wants a key"), ("wrong", "does not take this key"), ("open-sesame", None):
            page.get_by_label("Key").fill(key)
            page.keyboard.press("Enter")
            if said:
                page.locator("#failure", has_text=said).wait_for()
        page.locator(".ranking").wait_for()
        assert not page.get_by_label("Key").is_visible()
        page.locator("#task option").nth(1).wait_for(state="attached")
        assert "sesame" not in page.url


def test_a_busy_server_and_the_general_model(visit: Callable[..., Any]) -> None:
    page = visit()
    busy = {"error": {"message": "busy", "type": "overloaded_error", "param": None, "code": None}}
    one = {"reward": 1.0, "task": None, "route": {"chitchat": 0.4, "roleplay": 0.3}, "capabilities": {}}
    items = [{"id": "1", "scores": [{**one, "uncertainty": None, "temperature": 1.0}], "win_probabilities": [[0.5]]}]
    answers = [(429, busy), (200, {"model": "tiny", "items": items, "usage": {"tokens": 1}})]

    def fulfil(route: Any) -> None:
        status, body = answers.pop(0)
        route.fulfill(status=status, json=body, headers={"Retry-After": "7"})

    page.route("**/v1/score", fulfil)
    write(page, "One answer.")
    page.get_by_role("button", name="Remove response B").click()
    page.get_by_role("button", name="Score", exact=True).click()
    assert "It asks to wait 7 seconds." in page.locator("#failure").inner_text()
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("the general model scored", exact=False).wait_for()
    assert "chitchat came closest with 40%" in page.get_by_role("region", name="Route").inner_text()
    assert page.get_by_role("region", name="Capabilities").count() == 0


def test_it_is_light_and_loads_nothing_from_elsewhere() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60_000
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert not [
        name for name, text in texts.items() if re.search(r"https?:|@import|innerHTML|insertAdjacentHTML", text)
    ]
    assert not re.search(r"\sstyle=|\son\w+=|<script>", texts["index.html"])


@pytest.mark.skipif(PICTURES_VARIABLE not in os.environ, reason=f"{PICTURES_VARIABLE} names no model")
def test_pictures_for_the_docs(visit: Callable[..., Any]) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    model = dmoerm.DMoERM.from_pretrained(os.environ[PICTURES_VARIABLE])
    with served(create_app(model, ServingConfig(), "demo")) as url:
        for width, scheme, name in (1280, "light", "page.png"), (400, "dark", "page-400.png"):
            page = visit(width=width, scheme=scheme, at=url)
            page.get_by_role("button", name="Several turns").click()
            page.locator(".ranking").wait_for()
            page.mouse.move(0, 0)
            page.set_viewport_size({"width": width, "height": page.evaluate("document.body.scrollHeight")})
            page.evaluate("document.activeElement.blur()")
            page.screenshot(path=docs / name)
            assert (docs / name).stat().st_size < 250_000
