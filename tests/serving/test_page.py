"""The page at / as people use it: in Chromium, against the real server, by mouse and by keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from running import served

from dmoerm.serving import ServingConfig, create_app

from .driving import FOLDER, PROMPT, RESPONSES, enter, order, score, write

EXAMPLES = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))
_FOCUSED = """() => {
    const e = document.activeElement;
    return [e.getAttribute('aria-label') ?? e.labels?.[0]?.innerText.split('\\n').at(-1) ?? e.innerText,
            getComputedStyle(e).outlineStyle];
}"""


def shown_rewards(page: Any) -> list[float]:
    """The rewards of A, B, … as the page shows them."""
    texts = page.locator(".reward b").all_text_contents()
    by_letter = dict(zip(order(page), (float(text.replace("−", "-")) for text in texts), strict=True))
    return [by_letter[letter] for letter in sorted(by_letter)]


def test_score_edit_and_score_again(visit: Callable[..., Any], trained_run: Any) -> None:
    page, model = visit(), trained_run.model
    task, capabilities = next(iter(model.config.tasks.items()))
    write(page, *RESPONSES)
    page.get_by_label("Task").select_option(task)
    score(page)
    scores = model.score(PROMPT, RESPONSES, task)
    ranking = sorted(range(3), key=lambda i: -scores[i].reward)
    assert order(page) == "".join("ABC"[i] for i in ranking)
    first, last = scores[ranking[0]], scores[ranking[-1]]
    assert shown_rewards(page) == pytest.approx([each.reward for each in scores], abs=0.01)
    wins = page.locator(".wins").last.text_content()
    assert re.match(r"[ABC] is .* [ABC]: \d+%$", wins)
    assert int(re.findall(r"\d+", wins)[0]) == pytest.approx(100 * first.win_probability(last), abs=1)
    assert page.locator(".capabilities tbody tr").count() == len(capabilities)
    assert page.locator(".capabilities .value").count() == 3 * len(capabilities)
    assert task.replace("_", " ") in page.get_by_role("region", name="Route").inner_text()
    parts = page.locator(".contributions tbody tr")
    assert parts.count() == len(first.contributions) + 1
    assert "own model" in parts.nth(len(capabilities)).inner_text()
    sums = [float(text.replace("−", "-")) for text in parts.last.locator(".value").all_text_contents()]
    assert sums == pytest.approx([scores[i].reward for i in ranking], abs=0.01)

    swapped = list(RESPONSES)
    best, worst = ranking[0], ranking[-1]
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


def test_weights(visit: Callable[..., Any], trained_run: Any) -> None:
    page, model = visit(), trained_run.model
    write(page, *RESPONSES)
    page.get_by_label("Task").select_option("chitchat")
    assert page.locator(".weight").count() == 0  # before there are scores
    score(page)
    field = page.get_by_label("Weight of empathy")
    assert [each.input_value() for each in page.locator(".weight").all()] == ["1", "1"]
    assert "with your weights" not in page.get_by_role("region", name="Ranking").inner_text()
    capabilities = page.locator(".capabilities .value").all_text_contents()

    enter(field, "8")
    page.get_by_text("with your weights").wait_for()
    expected = model.score(PROMPT, RESPONSES, "chitchat", weights={"empathy": 8})
    assert shown_rewards(page) == pytest.approx([each.reward for each in expected], abs=0.01)
    assert sorted(page.locator(".capabilities .value").all_text_contents()) == sorted(capabilities)
    assert page.evaluate("document.activeElement.ariaLabel") == "Weight of empathy"
    assert field.input_value() == "8"

    again = visit(page.url[page.url.index("#") :])
    again.get_by_text("with your weights").wait_for()
    assert again.get_by_label("Weight of empathy").input_value() == "8"
    assert shown_rewards(again) == shown_rewards(page)

    enter(field, "11")
    assert page.evaluate("document.activeElement.validity.rangeOverflow")
    assert shown_rewards(page) == pytest.approx([each.reward for each in expected], abs=0.01)
    enter(field, "1")
    page.get_by_text("with your weights").wait_for(state="detached")
    plain = model.score(PROMPT, RESPONSES, "chitchat")
    assert shown_rewards(page) == pytest.approx([each.reward for each in plain], abs=0.01)


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


def test_examples_and_the_way_back(visit: Callable[..., Any], trained_run: Any) -> None:
    page = visit()
    write(page, *RESPONSES)
    examples = [example for example in EXAMPLES if example["task"] in trained_run.model.config.tasks]
    assert examples != EXAMPLES
    page.get_by_role("button", name=examples[0]["name"]).wait_for()
    assert page.locator("#examples button").all_text_contents() == [example["name"] for example in examples]
    for example in examples:
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
        for key, said in ("", "requires a key"), ("wrong", "rejects this key"), ("open-sesame", None):
            page.get_by_label("Key").fill(key)
            page.keyboard.press("Enter")
            if said:
                page.locator("#failure", has_text=said).wait_for()
        page.locator(".ranking").wait_for()
        assert not page.get_by_label("Key").is_visible()
        page.locator("#task option").nth(1).wait_for(state="attached")
        assert "sesame" not in page.url


def answer(*changes: dict[str, Any]) -> dict[str, Any]:
    """The server's answer for responses with these changes to their scores."""
    entry: dict[str, Any] = {"reward": 1.0, "task": "chitchat", "route": {"chitchat": 1.0}}
    entry |= {"capabilities": {"empathy": 1.0}, "contributions": {"empathy": 0.25, "per_task": 0.75}}
    scores = [{**entry, "uncertainty": 0.1, "temperature": 1.0, "truncated": False, **each} for each in changes]
    return {"items": [{"id": "1", "scores": scores, "win_probabilities": [[0.5] * len(changes)] * len(changes)}]}


def test_a_busy_server_and_the_general_model(visit: Callable[..., Any]) -> None:
    page = visit()
    general = {"task": None, "route": {"chitchat": 0.4, "roleplay": 0.3}, "capabilities": {}, "uncertainty": None}
    general |= {"contributions": {"general": 1.0}}
    answers = [(429, {"error": {"message": "busy"}}), (200, answer(general))]

    def fulfil(route: Any) -> None:
        status, body = answers.pop(0)
        route.fulfill(status=status, json=body, headers={"Retry-After": "7"})

    page.route("**/v1/score", fulfil)
    write(page, "One answer.")
    page.get_by_role("button", name="Remove response B").click()
    page.get_by_role("button", name="Score", exact=True).click()
    page.locator("#failure", has_text="Try again in 7 seconds.").wait_for()
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("the general model scored", exact=False).wait_for()
    assert "chitchat came closest with 40%" in page.get_by_role("region", name="Route").inner_text()
    assert page.get_by_role("region", name="Capabilities").count() == 0
    assert page.get_by_role("region", name="Contributions").count() == 0
    assert page.locator("#status").text_content() == "The reward is +1.00: general model +1.00."


def test_the_first_words_say_why_the_best_response_is_better(visit: Callable[..., Any]) -> None:
    page = visit()
    names = ["empathy", "content_richness", "logic", "wit", "tone", "per_task", "unused"]
    values = [[0.1, 0.2, 0.3, 0.0, 0.0, 0.2, 0.0], [0.8, 0.5, 0.3, 0.15, 0.02, 0.1, 0.0]]
    parts = [{"reward": sum(row), "contributions": dict(zip(names, row, strict=True))} for row in values]
    body = answer(*parts, {"reward": -20.0, "capabilities": {}, "contributions": {}})
    body["items"][0]["win_probabilities"] = [[0.5, 0.3, 1.0], [0.7, 0.5, 1.0], [0.0, 0.0, 0.5]]
    page.route("**/v1/score", lambda route: route.fulfill(json=body))
    write(page, *RESPONSES)
    score(page)
    why = "empathy +0.70, content richness +0.30, wit +0.15, task’s own model −0.10, tone +0.02"
    assert page.locator("#status").text_content() == f"B is likely better than A (70%): {why}."
    assert page.locator("#sections h3").all_text_contents() == ["Contributions", "Ranking", "Capabilities", "Route"]
    rows = page.locator(".contributions tbody tr").all()
    assert ["no weight" in row.inner_text() for row in rows] == [False] * 6 + [True, False]
    assert rows[0].locator(".value").all_text_contents() == ["+0.80", "+0.10", "–"]
    assert rows[-1].locator(".value").all_text_contents() == ["+1.87", "+0.80", "–"]
    parts[1]["contributions"] |= {"charm": 0.2, "unused": 0.25}
    body["items"][0]["scores"][1]["contributions"] = parts[1]["contributions"]
    write(page, *RESPONSES, prompt="Again.")
    score(page)
    assert page.locator("#status").text_content().endswith("unused +0.25, charm +0.20, 3 others +0.07.")
    parts[0]["contributions"]["general"], parts[1]["contributions"]["general"] = 1.0, 0.3
    write(page, *RESPONSES, prompt="Once more.")
    score(page)
    why = "B is likely better than A (70%): overall models −0.80, empathy +0.70, "
    assert page.locator("#status").text_content().startswith(why)


def test_truncated_texts_are_not_called_level(visit: Callable[..., Any]) -> None:
    page = visit()
    body = answer({"truncated": True}, {}, {"truncated": True})
    page.route("**/v1/score", lambda route: route.fulfill(json=body))
    write(page, *RESPONSES)
    score(page)
    assert "level" not in page.locator("#results").inner_text()
    lines = page.locator(".ranking li").all_inner_texts()
    assert ["part of it was not read" in line for line in lines] == [True, False, True]
    assert "part of it was not read" in page.locator("#status").text_content()
