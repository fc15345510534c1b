"""`dmoerm report`: results files of every kind on one page, with all of their numbers."""

from __future__ import annotations

import functools
import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import METHODS, TASKS, comparison
from sample_results import example
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.errors import DataError
from dmoerm.evaluation.experiment_results import Comparison
from dmoerm.experiments.methods import ablation_methods, default_methods
from dmoerm.report import read_measured, report_html

pytestmark = pytest.mark.usefixtures("undrawn")


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


def test_the_command_does_without_torch(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(comparison().to_json())
    code = """
import sys
from dmoerm.cli import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, "report", "results.json", "--output", "page.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "page.html" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def missing_of_comparison(document: dict[str, Any], text: str) -> list[float]:
    """Return the numbers of a comparison's results.json that the page does not show."""
    absent = missing(document["seeds"] + [document["members"]], text, "{}")
    for cost in document["costs"].values():
        absent += missing(cost, text, "{:z,.1f}", "{:z.2f}")
    for condition in document["conditions"].values():
        for name in ("accuracy", "capabilities", "by_seed"):
            absent += missing(condition[name], text, "{:z.1f}", scale=100)
        absent += missing(condition["paired"], text, "{:+z.1f}", scale=100)
        absent += missing(condition["calibration"], text, "{:z.3f}", "{:z.2f}", "{}")
        absent += missing(condition["length_bias"], text, "{:+z.2f}")
        absent += missing(condition["router"], text, "{:z.1f}", "{:z.0f}", scale=100)
    return absent


@pytest.fixture
def comparison_page(undrawn: None) -> str:
    """The page of `comparison()`."""
    return report_html(comparison())


def test_all_of_a_comparison_is_on_the_page(comparison_page: str) -> None:
    given, text = comparison(), text_of(comparison_page)
    document = json.loads(given.to_json())
    for word in (
        *METHODS,
        *TASKS,
        *document["methods"].values(),
        given.budget,
        given.command,
        "a.jsonl",
        "clean",
        "noisy",
    ):
        assert word in text, word
    assert missing_of_comparison(document, text) == []


def test_the_best_mean_comes_first(comparison_page: str) -> None:
    accuracy = comparison().conditions["noisy"].accuracy
    (table,) = re.findall(r"<caption>noisy: share of held-out pairs.*?</table>", comparison_page, re.DOTALL)
    shown = re.findall(r'<th scope="row"><span[^>]*></span>([^<]+)', table)
    assert set(shown) == set(METHODS)
    for part in ({method.name for method in default_methods()}, set(ablation_methods())):
        means = [accuracy[method]["mean"].value for method in shown if method in part]
        assert means == sorted(means, reverse=True)


def test_parts_that_were_not_measured_are_left_out() -> None:
    given = json.loads(comparison(("general", "dmoerm"), ("chitchat",), costs={}, derived_tasks=()).to_json())
    for condition in given["conditions"].values():
        nothing = {"accuracy": None, "prompts": 0, "fallback": None, "confusion": {}}
        condition |= {"capabilities": {}, "router": nothing, "calibration": {}, "length_bias": {}, "paired": {}}
    text = text_of(report_html(Comparison.model_validate(given)))
    for word in ("Capabilities", "Router", "Win probability", "length", "Costs", "Differences in mean"):
        assert word not in text
    assert "Accuracy: noisy" in text


def test_trained_prompts_are_stated() -> None:
    small = ("general", "dmoerm"), ("chitchat",)
    overlap = {"known": True, "groups": 9, "prompts": 7, "included": True}
    text = text_of(report_html(comparison(*small, overlap=overlap)))
    assert "The model was trained on 7 of the prompts (9 groups); they are included" in text
    assert "was trained on" not in text_of(report_html(comparison(*small)))


# --- files ---------------------------------------------------------------------------------------------------------


def test_each_kind_is_read(tmp_path: Path) -> None:
    small = ("general", "dmoerm"), ("chitchat",)
    given = {
        "compare.json": comparison(*small),
        "run.json": example(),
    }
    for name, results in given.items():
        (tmp_path / name).write_text(results.to_json())
        again = read_measured(tmp_path / name)
        assert type(again) is type(results)
        assert again.model_dump(exclude={"steps"}) == results.model_dump(exclude={"steps"})
    files = [str(tmp_path / "compare.json"), str(tmp_path / "run.json")]
    result = CliRunner().invoke(app, ["report", *files, "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    headings = re.findall(r"<h2[^>]*>([^<]+)", (tmp_path / "page.html").read_text())
    assert headings == ["Comparison of methods", "Run: train"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "poem"}', "wrong.json: kind: unknown kind.*'poem'.*give a JSON file"),
        ('{"kind": "comparison", "schema": 3}', "wrong.json: schema: .*install the version"),
        ("{}", "wrong.json: command"),
        ("[1]", "wrong.json: .*give a JSON file"),
        ("not JSON", "wrong.json: .*give a JSON file"),
        (None, "wrong.json: cannot be read: .*give a JSON file"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_measured(tmp_path / "wrong.json")
