"""The page of a comparison has all of its numbers."""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from report_samples import NAMES, TASKS, comparison

from dmoerm.evaluation.results import Comparison
from dmoerm.report import report_html

pytestmark = pytest.mark.usefixtures("undrawn")
SMALL = ("general", "dmoerm"), ("chitchat",)


def text_of(markup: str) -> str:
    """Return the page's text without plots and style."""
    markup = re.sub(r"<style>.*?</style>|<img[^>]*>", " ", markup, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", markup))


@functools.cache
def words_of(text: str) -> set[str]:
    """Return the words and numbers of a text, without punctuation."""
    return {word.strip("();:,") for word in re.split(r"[\s–%×]+", text)}


def numbers(document: Any) -> Iterator[float]:
    """Yield all numbers of a JSON value."""
    if isinstance(document, dict | list):
        for value in document.values() if isinstance(document, dict) else document:
            yield from numbers(value)
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield document


def missing(document: Any, text: str, *formats: str, scale: int = 1) -> list[float]:
    """Return the numbers that the text does not contain in one of these formats; integers may stand unformatted."""
    return [
        number
        for number in numbers(document)
        if words_of(text).isdisjoint(form.format(scale * number) for form in formats)
        and (number < 1 or words_of(text).isdisjoint([f"{number}", f"{number:,}"]))
    ]


def test_all_of_a_comparison_is_on_the_page_with_the_best_mean_first() -> None:
    given = comparison()
    page = report_html(given)
    document, text = json.loads(given.to_json()), text_of(page)
    described = [description for method, description in given.methods.items() if method != "dmoerm"]
    for word in (*NAMES, *TASKS, *described, given.command, "a.jsonl"):
        assert word in text, word
    absent = missing(document["seeds"], text, "{}")
    for name in ("accuracy", "capabilities", "by_seed"):
        absent += missing(document[name], text, "{:z.1f}", scale=100)
    absent += missing(document["paired"], text, "{:+z.1f}", scale=100)
    absent += missing(document["calibration"], text, "{:z.3f}", "{:z.2f}", "{}")
    absent += missing(document["length_bias"], text, "{:+z.2f}")
    absent += missing(document["router"], text, "{:z.1f}", "{:z.0f}", scale=100)
    assert set(absent) <= {0.5}, "the end of a bin without pairs"
    (table,) = re.findall(r"<caption>Share of held-out pairs.*?</table>", page, re.DOTALL)
    shown = re.findall(r'<th scope="row"><span[^>]*></span>([^<]+)', table)
    means = [given.accuracy[method]["mean"].value for method in shown]
    assert means == sorted(means, reverse=True)
    assert len(means) == len(NAMES)


def test_parts_that_were_not_measured_are_left_out() -> None:
    given = json.loads(comparison(*SMALL, derived_tasks=()).to_json())
    nothing = {"accuracy": None, "prompts": 0, "fallback": None, "confusion": {}}
    given |= {"capabilities": {}, "router": nothing, "calibration": {}, "length_bias": {}, "paired": {}}
    text = text_of(report_html(Comparison.model_validate(given)))
    for word in ("Capabilities", "Router", "Win probability", "with length", " points (", "Experts of"):
        assert word not in text
