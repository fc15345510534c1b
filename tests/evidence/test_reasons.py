"""Which capability an explanation names, and how often people prefer the response on it too."""

from __future__ import annotations

import numpy as np
import pytest

from dmoerm.schema import Group
from dmoerm.scores import Score
from evidence.reasons import pair_counts, rows, table

GRADES = {"wit": (3.0, 1.0, 2.0), "tone": (1.0, 2.0, 2.0), "logic": (1.0, 1.0, None)}


def score(reward: float, parts: dict[str, float], capabilities: dict[str, float] | None = None, task: str = "chat"):
    return Score(reward, task, {}, capabilities or dict.fromkeys(GRADES, 0.0), None, 1.0, contributions=parts)


def group(**changes) -> Group:
    row = {"id": "1", "task": "chat", "prompt": "Hi", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}
    return Group.model_validate(row | {"capabilities": GRADES} | changes)


def test_the_named_capability_is_the_one_with_the_largest_lead() -> None:
    scores = [
        score(2.0, {"wit": 0.5, "tone": 0.1, "logic": 0.0, "per_task": 1.4}, {"wit": 0.1, "tone": 2.0, "logic": 9.0}),
        score(1.0, {"wit": -0.5, "tone": 0.0, "logic": 0.0, "per_task": 1.5}),
        score(-1.0, {"wit": 0.0, "tone": 0.2, "logic": 0.0, "per_task": -1.2}),
    ]
    found = {(better, worse): row.tolist() for better, worse, row in rows(group(), scores)}
    # a before b: wit, which people prefer too; raw: logic, on which their grades are equal; one of three is right
    assert found[0, 1] == pytest.approx([1, 1, 0, 1 / 3, 1])
    # a before c: wit again; raw: tone, on which people prefer c; logic of c was not graded
    assert found[0, 2] == pytest.approx([1, 1, 0, 1 / 2, 1])
    # b before c: per_task gives it all, so the least loss, -0.2 of tone, is named; people prefer b on neither
    assert found[1, 2] == pytest.approx([1, 0, 0, 0, 0])


def test_pairs_without_an_explanation_are_left_out() -> None:
    parts = {"wit": 0.5, "tone": 0.1, "logic": 0.0}
    idle = dict.fromkeys(parts, 0.0)
    for first, second in (
        (score(1.0, idle), score(0.0, idle)),  # experts without weight
        (score(1.0, parts), score(1.0, idle)),  # equal rewards
        (score(1.0, parts), Score(-20.0, "chat", {}, {}, None, 1.0)),  # an empty response
        (score(1.0, parts, task="qa"), score(0.0, idle, task="qa")),  # the router chose another task
    ):
        assert list(rows(group(), [first, second])) == []
    one_grade = group(capabilities={"wit": (1, 2, 3), "tone": (None, 1, 2)})
    assert list(rows(one_grade, [score(1.0, parts), score(0.0, idle)])) == []


def test_the_table_averages_tasks_and_seeds() -> None:
    right, wrong = np.array([4.0, 4, 2, 1, 4]), np.array([2.0, 0, 1, 1, 2])
    seeds = [
        {"chat": {"p": right, "q": wrong}, "qa": {"r": right}},
        {"chat": {"p": right, "s": wrong}, "qa": {"t": wrong}},
    ]
    chat, qa, mean = table(seeds)
    assert [row["task"] for row in (chat, qa, mean)] == ["chat", "qa", "mean"]
    assert (chat["prompts"], chat["pairs"]) == ("3", "12")
    assert (chat["contribution"], chat["raw"], chat["chance"]) == ("66.7", "50.0", "33.3")
    assert (qa["contribution"], qa["possible"]) == ("50.0", "100.0")
    assert mean["contribution − chance"].startswith("+22.9 (")
    assert pair_counts(seeds[0]["chat"]).right["raw"].tolist() == [[2, 1]]
