"""The section of one run."""

import re
from pathlib import Path
from typing import Any

from sample_results import DIFFERENCE, ESTIMATE, NAMES, example

from dmoerm.evaluation.results import score_weights
from dmoerm.report import report_html, write_report
from dmoerm.report.card import card


def test_the_page_is_self_contained_and_says_the_numbers(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", example(config={"name": "<b>"}))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 3
    assert {link[:5] for link in re.findall(r'(?:src|href)="([^"#]+)', page)} == {"data:"}
    assert "http" not in page
    for words in (
        "70.0%",
        "60.0–80.0",
        "+3.0 points (+1.0 to +5.0) against general",
        "98.0%",
        "objective_qa",
        "name: &lt;b&gt;",
        "1.0 GiB",
    ):
        assert words in page


def test_the_page_does_without_what_was_not_measured() -> None:
    one = {m: {"chitchat": ESTIMATE, "mean": ESTIMATE} for m in ("general", "dmoerm")}
    sparse: dict[str, Any] = {
        "accuracy": one,
        "paired": {"dmoerm - general": {"chitchat": DIFFERENCE, "mean": DIFFERENCE}},
        "capabilities": {},
        "router": {"accuracy": None, "prompts": 0, "fallback": None, "confusion": {}},
        "length_bias": {},
        "time": {},
        "peak_memory": None,
    }
    results = example(**sparse)
    page, text = report_html(results), card(results, {"chitchat": ["logic"]})
    assert [word for word in ("Router", "Capabilities") if word in page] == []
    assert [words for words in ("router's most likely", "correlation") if words in text] == []


def test_derived_tasks_are_marked() -> None:
    changes = {m: dict.fromkeys([*NAMES, "mean_human"], ESTIMATE) for m in ("general", "dmoerm")}
    paired = {"dmoerm - general": dict.fromkeys([*NAMES, "mean_human"], DIFFERENCE)}
    results = example(derived_tasks=["chitchat"], accuracy=changes, paired=paired)
    for text, mark in ((report_html(results), "*"), (card(results, {"chitchat": ["logic"]}), r"\*")):
        assert f"chitchat {mark}" in text
        assert "not given by people" in text


def test_truncated_and_trained_prompts_are_stated() -> None:
    overlap = {"known": True, "groups": 7, "prompts": 5, "included": True}
    truncation = {"evaluation": {"responses": 80, "truncated": 6, "identical_pairs": 2}}
    results = example(overlap=overlap, truncation=truncation)
    for text in (report_html(results), card(results, {"chitchat": ["logic"]})):
        assert "prompts, 5 of which the model was trained on" in text
        assert "6 of 80 responses" in text
        assert "2 pairs of them differ only in what is cut" in text


def test_the_weights_of_the_aggregator_are_shown_where_they_were_chosen() -> None:
    steps = {
        "phase0": {"accuracy": 0.599},
        "phase1/chitchat": {"accuracy": 0.622, "accuracy/all_labels": 0.633},
        "phase2/chitchat/0": {"accuracy/empathy": 0.644},
        "phase2/chitchat/1": {"accuracy/logic": 0.655},
        "phase3/chitchat": {
            "accuracy": 0.666,
            "accuracy/general": 0.611,
            "weight/empathy": 0.25,
            "weight/logic": 0.0,
            "weight/general": 0.75,
        },
        "phase3/objective_qa": {"accuracy": 0.5},
    }
    weights = score_weights(steps, NAMES)
    assert weights == {"chitchat": {"empathy": 0.25, "logic": 0.0, "general": 0.75}}
    page = report_html(example(steps=steps, weights=weights))
    assert "What the rewards are made of" in page
    for text in ("64.4%", "65.5%", "61.1%", "66.6%", "0.75", "0.00"):
        assert text in page
    assert "62.2%" not in page  # the reward does not read phase 1 here
    assert "59.9%" not in page  # of all tasks together
    assert "What the rewards are made of" not in report_html(example(steps={"phase3/chitchat": {"accuracy": 0.7}}))


def test_the_worst_pairs_are_shown_with_their_texts_escaped() -> None:
    estimate = {"value": 0.25, "low": 0.1, "high": 0.4, "pairs": 8, "prompts": 4}
    pair = {"id": "7", "task": "chitchat", "prompt": "<b>why</b>", "preferred": "because", "other": "</script><i>"}
    pair |= {
        "probability": 0.03,
        "rewards": (-1, 2.5),
        "uncertainty": (0.11, 0.22),
        "capabilities": {"wit": (0.3, 4.5)},
    }
    errors = {"worst": [pair], "by_length": {"about equally long": estimate}, "by_agreement": {}}
    text = report_html(example(errors=errors))
    texts = ("&lt;b&gt;why&lt;/b&gt;", "because", "&lt;/script&gt;&lt;i&gt;", "wit")
    assert [words for words in (*texts, "3.0%", "2.50", "0.22", "4.50", "25.0%") if words not in text] == []
    assert "agreement of annotators" not in text
    assert "<i>" not in text
    assert "people and dmoerm differ" not in report_html(example())


def test_labels_that_the_model_surely_contradicts_are_shown_with_their_texts_escaped() -> None:
    label = {"id": "7", "task": "chitchat", "prompt": "<b>why</b>", "preferred": "<i>no", "other": "yes"}
    labels = [label | {"capability": "wit", "probability": 0.031}, label | {"capability": None, "probability": 0.042}]
    unsure = label | {"probability": 0.31}
    errors: dict[str, Any] = {"worst": [], "by_length": {}, "by_agreement": {}}
    doubts = {"judged": 1234, "contradicted": 56, "worst": [*labels, unsure]}
    text = report_html(example(errors=errors | {"doubts": doubts}))
    for shown in ("56 of 1234 labels", "chitchat, wit: probability 3.1%", "chitchat: probability 4.2%", "&lt;i&gt;no"):
        assert shown in text
    assert "31.0%" not in text
    for none in (None, doubts | {"worst": [unsure]}):  # None: as `dmoerm eval` writes them
        assert "Doubtful labels" not in report_html(example(errors=errors | {"doubts": none}))
