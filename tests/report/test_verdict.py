"""The verdict in words: gain, loss, level, what was not compared, the router and the experts."""

from __future__ import annotations

from typing import Any

import pytest
from report_samples import comparison
from sample_results import ESTIMATE, example

from dmoerm.report.verdict import findings, headline, origin

GAIN, LEVEL, LOSS = ({"value": v, "low": v - 0.02, "high": v + 0.02} for v in (0.03, 0.01, -0.03))
ONE, PER_TASK = "one model trained on all tasks", "one model per task"


def compared(**differences: Any) -> Any:
    """Results with these differences of the mean to other methods."""
    paired = {f"dmoerm - {method}": {"mean": difference} for method, difference in differences.items()}
    return example(paired=paired, accuracy={m: {"mean": ESTIMATE} for m in ("dmoerm", *differences)})


@pytest.mark.parametrize(
    ("general", "routed", "verdict"),
    [
        (GAIN, GAIN, f"pays on this data: it is more accurate than {ONE} and {PER_TASK}."),
        (GAIN, LEVEL, f"pays in part on this data: it is level with {PER_TASK}; more accurate than {ONE}."),
        (LEVEL, LEVEL, f"does not clearly pay on this data: it is level with {ONE} and {PER_TASK}."),
        (GAIN, LOSS, f"does not pay on this data: it is less accurate than {PER_TASK}; more accurate than {ONE}."),
        (LOSS, LOSS, f"does not pay on this data: it is less accurate than {ONE} and {PER_TASK}."),
    ],
    ids=["gain", "part", "level", "loss", "losses"],
)
def test_the_headline_says_whether_the_mixture_pays(general: Any, routed: Any, verdict: str) -> None:
    verdict = f"So far, the mixture {verdict}"
    assert headline(compared(per_task=LEVEL, general=general, per_task_routed=routed)) == verdict
    oracle = " A simpler model that knows the kind of each prompt is more accurate." if routed != LOSS else ""
    assert headline(compared(per_task=LOSS, general=general, per_task_routed=routed)) == verdict + oracle


def test_losses_come_first_and_are_as_large_as_gains() -> None:
    rows = [(label, text) for label, text, _ in findings(compared(per_task=LEVEL, general=GAIN, per_task_routed=LOSS))]
    assert rows[:3] == [
        ("Loss", "-3.0 points (-5.0 to -1.0) against per_task_routed"),
        ("Gain", "+3.0 points (+1.0 to +5.0) against general"),
        ("Level", "+1.0 points (-1.0 to +3.0) against per_task"),
    ]


def test_what_was_not_compared_comes_with_the_command_that_measures_it() -> None:
    results = compared()
    assert headline(results).startswith("It is not known whether the mixture pays")
    (label, text, detail), *others = findings(results)
    assert (label, text) == ("Not compared", "general, per_task_routed and all_labels_routed")
    assert detail.endswith("dmoerm compare CONFIG")
    assert ("Accuracy", "70.0% (60.0 to 80.0)") in [other[:2] for other in others]
    (run,) = (d for name, _, d in findings(example(config={"output": "runs/mine"})) if name == "Not compared")
    assert run.endswith("dmoerm compare runs/mine/config.yaml")
    chosen = comparison(("general", "dmoerm"))
    assert next(d for name, _, d in findings(chosen) if name == "Not compared").endswith("without --method")
    assert "Not compared" not in [name for name, *_ in findings(comparison())]
    assert headline(comparison()).startswith("The mixture pays")


@pytest.mark.parametrize("make", [example, comparison])
def test_experts_without_weight_and_the_share_of_recognized_prompts(make: Any) -> None:
    router = {"accuracy": 0.9, "prompts": 200, "fallback": 0.25, "confusion": {}}
    weights = {"chat": {"empathy": 0.0, "logic": 0.004, "wit": 0.3, "general": 0.0}, "code": {"logic": 0.7}}
    rows = {label: (text, detail) for label, text, detail in findings(make(router=router, weights=weights))}
    assert rows["Experts"] == ("2 of 4 have no weight in the reward", "chat: empathy, chat: logic")
    assert rows["Router"][0].startswith("recognizes 75.0% of 200 prompts")
    assert "90.0%" in rows["Router"][1]
    unknown = {label: text for label, text, _ in findings(make(router=router | {"accuracy": None}, weights={}))}
    assert unknown["Experts"] == "their weights are not known"
    assert "Router" not in unknown


def test_the_origin_names_folder_data_and_date_as_far_as_known() -> None:
    files = [f"{name}.jsonl" for name in "abcde"]
    known = origin(example(folder="runs/mine", data=files, date="2026-01-31"))
    assert known == "Folder: runs/mine · Data: a.jsonl, b.jsonl, c.jsonl and 2 more · Date: 2026-01-31"
    assert origin(comparison(data=files[:2])) == "Data: a.jsonl and b.jsonl"
