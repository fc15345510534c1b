"""`dmoerm report`: results files of every kind on one page, with all that they hold."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_samples import METHODS, TASKS, best_of_n, comparison, policies
from sample_results import example
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.errors import DataError
from dmoerm.evaluation.experiment_results import BestOfNResults, Comparison
from dmoerm.experiments.ablations import ABLATIONS
from dmoerm.experiments.runs import TRAINED
from dmoerm.report import page, read_measured, report_html, write_folder_report
from dmoerm.report.plots import colour_of

HOSTILE = '<script>alert("$x$")</script> & a name that is far too long for a plot'


def text_of(found: str) -> str:
    """The page's text, without its pictures and style."""
    found = re.sub(r"<style>.*?</style>|<img[^>]*>", " ", found, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", found))


def numbers(found: Any) -> Iterator[float]:
    """All numbers of a JSON value."""
    if isinstance(found, dict):
        for value in found.values():
            yield from numbers(value)
    elif isinstance(found, list):
        for value in found:
            yield from numbers(value)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield found


def missing(found: Any, text: str, *ways: str, scale: int = 1) -> list[float]:
    """Numbers that are not in the text, written in one of these ways; whole ones are written as they are."""
    words = {word.strip("();:,") for word in re.split(r"[\s–%×]+", text)}
    return [
        number
        for number in numbers(found)
        if not ({way.format(scale * number) for way in ways} | ({f"{number}", f"{number:,}"} if number >= 1 else set()))
        & words
    ]


def lost_of_comparison(found: dict[str, Any], text: str) -> list[float]:
    """What of a comparison's results.json the page does not say."""
    lost = missing(found["seeds"] + [found["members"]], text, "{}")
    for cost in found["costs"].values():
        lost += missing(cost, text, "{:z,.1f}", "{:z.2f}")
    for condition in found["conditions"].values():
        for name in ("accuracy", "capabilities", "by_seed"):
            lost += missing(condition[name], text, "{:z.1f}", scale=100)
        lost += missing(condition["paired"], text, "{:+z.1f}", scale=100)
        lost += missing(condition["calibration"], text, "{:z.3f}", "{:z.2f}", "{}")
        lost += missing(condition["length_bias"], text, "{:+z.2f}")
        lost += missing(condition["router"], text, "{:z.1f}", "{:z.0f}", scale=100)
    return lost


def lost_of_best_of_n(found: dict[str, Any], text: str) -> list[float]:
    """What of a best_of_n.json the page does not say; a fit's value is shown above the gold of n = 1."""
    lost = missing([found["ns"], found["samples"], list(found["prompts"].values()), found["seeds"]], text, "{}")
    lost += missing([kl**0.5 for kl in found["kl"]], text, "{:z.3f}")
    for condition in found["conditions"].values():
        lost += missing(condition["at_the_end"], text, "{:+z.3f}")
        for curve in (curve for curves in condition["curves"].values() for curve in curves.values()):
            fit = curve.pop("fit") or {}
            if fit.get("value") is not None:
                fit["value"] += curve["gold"][0]
            lost += missing(curve, text, "{:z.3f}") + missing(fit, text, "{:z.2f}", "{:z.3f}", "{:z.4f}")
    return lost


@pytest.fixture(scope="module")
def compared_page() -> str:
    """The page of `comparison()`."""
    return report_html(comparison())


def test_all_of_a_comparison_is_on_the_page(compared_page: str) -> None:
    given, text = comparison(), text_of(compared_page)
    found = json.loads(given.to_json())
    for word in (
        *METHODS,
        *TASKS,
        *found["methods"].values(),
        given.budget,
        given.command,
        "a.jsonl",
        "clean",
        "noisy",
    ):
        assert word in text, word
    assert lost_of_comparison(found, text) == []


def test_all_of_best_of_n_is_on_the_page() -> None:
    given = best_of_n()
    found = json.loads(given.to_json())
    text = text_of(report_html(given))
    for word in (*given.conditions["clean"].curves["all"], *TASKS, given.source, given.command):
        assert word in text, word
    assert lost_of_best_of_n(found, text) == []


def test_all_of_optimised_policies_is_on_the_page() -> None:
    given = policies()
    found, text = json.loads(given.to_json()), text_of(report_html(given))
    for word in ("general", "ensemble_uwo", "dmoerm", "noisy", "RLOO", "10,490,368", given.command):
        assert word in text, word
    for run in found["runs"]:
        points = run["points"]
        assert missing([[p["step"], p["gold"]] for p in points], text, "{:.3f}", "{}") == []
        assert missing([p["kl"] for p in points], text, "{:z.2f}") == []
        assert missing([p["proxy"] for p in points], text, "{:+z.3f}") == []
    for one in found["summaries"]:
        assert missing([one["start"], one["peak"], one["end"], one["fall"]], text, "{:.3f}") == []
        assert missing([one["fit"]["alpha"], one["fit"]["beta"]], text, "{:.4f}") == []
    assert missing(found["paired"], text, "{:+z.3f}") == []
    assert "Differences" not in text_of(report_html(policies(("general",))))


def test_a_real_comparison(compared: Path) -> None:
    text = text_of((compared / "report.html").read_text(encoding="utf-8"))
    assert "Comparison of methods" in text
    assert "Best of n" in text
    assert lost_of_comparison(json.loads((compared / "results.json").read_text()), text) == []
    assert lost_of_best_of_n(json.loads((compared / "best_of_n.json").read_text()), text) == []


def test_the_best_mean_comes_first(compared_page: str) -> None:
    accuracy = comparison().conditions["noisy"].accuracy
    (table,) = re.findall(r"<caption>noisy: share of held-out pairs.*?</table>", compared_page, re.DOTALL)
    shown = re.findall(r'<th scope="row"><span[^>]*></span>([^<]+)', table)
    assert set(shown) == set(METHODS)
    for part in (set(TRAINED), set(ABLATIONS)):
        means = [accuracy[method]["mean"].value for method in shown if method in part]
        assert means == sorted(means, reverse=True)


def test_names_are_text_and_no_markup() -> None:
    methods, tasks = ("general", "dmoerm", HOSTILE), ("chitchat", f"{HOSTILE} too")
    found = report_html(comparison(methods, tasks), best_of_n(methods, tasks))
    assert "<script" not in found
    assert found.count(html.escape(HOSTILE)) > 10
    assert HOSTILE in text_of(found)


def test_parts_that_were_not_measured_are_left_out() -> None:
    given = json.loads(comparison(("general", "dmoerm"), ("chitchat",), costs={}, derived_tasks=()).to_json())
    for condition in given["conditions"].values():
        nothing = {"accuracy": None, "prompts": 0, "fallback": None, "confusion": {}}
        condition |= {"capabilities": {}, "router": nothing, "calibration": {}, "length_bias": {}, "paired": {}}
    text = text_of(report_html(Comparison.model_validate(given)))
    for word in ("Capabilities", "Router", "Win probability", "Length", "Cost", "Differences of the mean"):
        assert word not in text
    assert "Accuracy: noisy" in text


def test_one_task_without_fits() -> None:
    curves = best_of_n(("dmoerm", "other"), ("chitchat",), fits=False)
    text = text_of(report_html(curves))
    assert "Gold by task" not in text
    assert "chitchat: highest gold" in text
    alone = best_of_n(("dmoerm",), ("",))
    text = text_of(report_html(alone))
    assert "Differences" not in text
    assert "no task: highest gold" in text


def test_the_same_input_gives_the_same_page() -> None:
    small = ("general", "dmoerm"), ("chitchat", "objective_qa")
    given = comparison(*small), best_of_n(*small), example()
    assert report_html(*given) == report_html(*(type(one).model_validate_json(one.to_json()) for one in given))


def test_plots_are_documents_of_their_own_and_ids_are_unique() -> None:
    small = ("general", "dmoerm"), ("chitchat", "objective_qa")
    found = report_html(comparison(*small), comparison(*small), best_of_n(*small), example())
    assert "<svg" not in found, "inline, clip paths of two plots might share an id"
    ids = re.findall(r' id="([^"]+)"', found)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', found)) <= set(ids)
    assert set(re.findall(r'aria-labelledby="([^"]+)"', found)) <= set(ids)
    assert {"Comparison of methods (1)", "Comparison of methods (2)"} <= set(re.findall(r"<h2[^>]*>([^<]+)", found))
    images = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"', found)
    assert len(images) == found.count("<img")
    for _, image in images:
        svg = ElementTree.fromstring(base64.b64decode(image))
        inner = [element.get("id") for element in svg.iter() if element.get("id")]
        assert len(inner) == len(set(inner))


def test_text_on_a_heat_map_is_legible() -> None:
    for share in range(-100, 101):
        ground, ink = page._heat(share / 100)
        light = [page._luminance([int(c[i : i + 2], 16) for i in (1, 3, 5)]) + 0.05 for c in (ground, ink)]
        assert max(light) / min(light) > 4.5, share


def test_methods_keep_their_colour_and_families_share_one() -> None:
    own = ("dmoerm", "general", "per_task", "ensemble_uwo", "bagged_uwo", "warm", "gated", "no_inner", "a judge")
    assert len({colour_of(method) for method in own}) == len(own)
    assert colour_of("ensemble_mean") == colour_of("ensemble_wco")


# --- files ---------------------------------------------------------------------------------------------------------


def test_each_kind_is_read(compared: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(example().to_json())
    assert isinstance(read_measured(compared / "results.json"), Comparison)
    assert isinstance(read_measured(compared / "best_of_n.json"), BestOfNResults)
    assert read_measured(tmp_path / "run.json").model_dump(exclude={"steps"}) == example().model_dump(exclude={"steps"})
    files = [str(compared / "best_of_n.json"), str(tmp_path / "run.json")]
    result = CliRunner().invoke(app, ["report", *files, "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    headings = re.findall(r"<h2[^>]*>([^<]+)", (tmp_path / "page.html").read_text())
    assert headings == ["Best of n", "Run: train"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "poem"}', "wrong.json: kind: there is no section.*'poem'.*give a JSON file"),
        ('{"kind": "comparison", "schema": 2}', "wrong.json: schema: .*reads schema 1"),
        ('{"kind": "best_of_n"}', "wrong.json: command: .*give a JSON file"),
        ("{}", "wrong.json: command"),
        ("[1]", "wrong.json: .*give a JSON file"),
        ("not JSON", "wrong.json: .*give a JSON file"),
        (None, "wrong.json: cannot be read: .*give a JSON file"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_measured(tmp_path / "wrong.json")


def test_a_folder_shows_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "best_of_n.json").write_text(best_of_n(("dmoerm",), ("chitchat",)).to_json())
    assert "Best of n" in write_folder_report(tmp_path).read_text()
    (tmp_path / "results.json").write_text(example().to_json())
    found = write_folder_report(tmp_path).read_text()
    assert found.index("Run: train") < found.index("Best of n")
