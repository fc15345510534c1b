import json

import pytest
from sample_results import example

from dmoerm.evaluation.results import Results, phase_seconds


def test_what_is_written_is_read_also_with_fields_of_later_versions() -> None:
    read = Results.model_validate_json(json.dumps(json.loads(example().to_json()) | {"new": 1}))
    assert read.model_dump(exclude={"steps"}) == example().model_dump(exclude={"steps"})
    assert read.steps["router"] == {"loss": None, "seconds": 1.5}, "JSON knows no NaN"
    assert read.tasks == ["chitchat", "objective_qa"]


def test_the_layout_of_schema_2() -> None:
    found = json.loads(example().to_json())
    assert found["schema"] == 2
    promised = "command config seed versions overlap router accuracy paired capabilities time peak_memory"
    assert set(promised.split()) <= set(found)
    assert set(found["accuracy"]["dmoerm"]["mean"]) == {"value", "low", "high", "pairs", "prompts"}
    assert set(found["paired"]["dmoerm - general"]["chitchat"]) == {"value", "low", "high"}
    assert {"value", "pairs"} <= set(found["capabilities"]["chitchat"]["empathy"])
    assert {"accuracy", "confusion"} <= set(found["router"])
    assert {"python", "torch", "transformers", "peft", "dmoerm"} == set(found["versions"])


def test_seconds_are_summed_by_phase() -> None:
    steps = {"router": {"seconds": 1.0}, "phase2/a/x": {"seconds": 2.0}, "phase2/b/y": {"seconds": 3.5}, "phase3/a": {}}
    assert phase_seconds(steps) == {"router": 1.0, "phase2": 5.5, "phase3": 0.0}


@pytest.mark.parametrize(
    ("fallback", "words"),
    [
        (1.0, "100.0% of 50 prompts: the general model scores them, and the mixture is never used."),
        (0.6, "60.0% of 50 prompts: the general model scores them, and the mixture is used for 40.0%"),
        (0.02, None),
        (None, None),
    ],
)
def test_a_router_that_recognizes_few_prompts_is_a_warning(fallback: float | None, words: str | None) -> None:
    remarks = example(router={"accuracy": 0.25, "prompts": 50, "fallback": fallback, "confusion": {}}).remarks
    assert len(remarks) == (words is not None)
    assert all(words in remark and "router.threshold" in remark for remark in remarks if words)
