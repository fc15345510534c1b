"""Rows with graded or ranked responses, as they are published; the texts are made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dmoerm.data.groups import overall_from_capabilities
from dmoerm.data.readers import Reading
from dmoerm.errors import DataError
from dmoerm.schema import Grades, Group, Pair

ReadRows = Callable[..., Reading]
ReadOne = Callable[..., Group]
MTMC = {"label": "闲聊", "src": ["你好"], "tgt": [], "response": ["好", "不好"], "rank": [1, 2]}
ALONE = {"row: fewer than two usable responses to the prompt": 1}


def completion(response: str, overall: float | None, helpfulness: str, fine: float | None = None) -> dict[str, Any]:
    ratings = {"helpfulness": {"Rating": helpfulness, "Rationale": "…"}, "honesty": {"Rating": "N/A"}}
    row = {"response": response, "overall_score": overall, "annotations": ratings, "critique": "…"}
    return row if fine is None else row | {"fine-grained_score": fine}


A, C = completion("a", 5, "4"), completion("c", 7, "3")


def helpsteer(prompt: str, response: str, helpfulness: int, **grades: int) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 1, **grades}


def test_mtmc(read_one: ReadOne, read_rows: ReadRows) -> None:
    row = {"label": "角色扮演", "src": ["你好", "再见"], "tgt": ["您好"]}
    group = read_one(row | {"response": ["甲", "乙", "丙"], "rank": [2, 1, 2]})
    assert group.task == "roleplay"
    assert [m.content for m in group.prompt if not isinstance(m, str)] == ["你好", "您好", "再见"]
    assert group.pairs() == [Pair(1, 0), Pair(1, 2)]
    assert read_one(MTMC | {"label": "其他"}).task is None
    with pytest.raises(DataError, match="tgt: has 1 turns where src has 1; give the model's turns but the last"):
        read_rows(MTMC | {"tgt": ["您好"]})


@pytest.mark.parametrize(
    ("completions", "scores", "helpfulness", "skipped"),
    [
        ([completion("a", 8, "4"), completion("b", 3, "2")], (8, 3), (4, 2), {}),
        ([completion("a", None, "4", 4.5), completion("b", 9, "2", 2)], (4.5, 2), (4, 2), {}),
        ([A, completion("b", None, "2"), C], (5, 7), (4, 3), {"response: no overall score": 1}),
        ([A, completion("", 1, "1"), C], (5, 7), (4, 3), {"response: empty": 1}),
        ([completion("a", None, "4"), completion("b", None, "N/A")], None, (4, None), {}),
    ],
)
def test_ultrafeedback(completions: list, scores: Any, helpfulness: Any, skipped: dict, read_rows: ReadRows) -> None:
    reading = read_rows({"instruction": "Hi", "completions": completions})
    (group,) = reading.groups
    assert (group.scores, group.capabilities) == (scores, {"helpfulness": helpfulness})
    assert reading.skipped == skipped


def test_helpsteer_rows_of_one_prompt_are_one_group(read_rows: ReadRows) -> None:
    prompt = "Hi\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nWhy?"  # HelpSteer 2
    rows = helpsteer(prompt, "a", 4, verbosity=2), helpsteer("alone", "a", 4), helpsteer(f"{prompt} ", "b", 3)
    reading = read_rows(*rows[:2], rows[2] | {"verbosity": 0})
    (group,) = reading.groups
    assert (group.responses, group.scores) == (("a", "b"), (4, 3))
    assert group.capabilities == {"correctness": (1, 1), "verbosity": (2, 0)}
    turns = [(m.role, m.content) for m in group.prompt if not isinstance(m, str)]
    assert turns == [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
    assert reading.skipped == ALONE


def test_helpsteer3_preferences(read_one: ReadOne) -> None:
    row = {"domain": "stem", "context": [{"role": "user", "content": "Hi"}], "response1": "a", "response2": "b"}
    people = [{"score": -3, "reasoning": "…"}, {"score": 1, "reasoning": "…"}]
    group = read_one(row | {"overall_preference": -2, "individual_preference": people})
    assert (group.task, group.scores) == ("stem", (1, -1))
    assert group.annotators == {"overall": ((1.5, -0.5), (-1.5, 0.5))}
    assert read_one(row | {"overall_preference": 0}).scores == (0, 0)


def test_shp(read_one: ReadOne) -> None:
    row = {"post_id": "x", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": "Why?"}
    row |= {"human_ref_A": "a", "human_ref_B": "b", "score_A": 340, "score_B": 166}
    group = read_one(row | {"labels": 1})
    assert (group.prompt, group.responses, group.ranks, group.task) == ("Why?", ("a", "b"), (1, 2), "askculinary")
    assert read_one(row | {"labels": 0}).ranks == (2, 1)


@pytest.mark.parametrize("good", [True, 1, "true", "True", "1"])
def test_kto_joins_the_rows_of_a_prompt(good: Any, read_rows: ReadRows) -> None:
    bad = "False" if isinstance(good, str) else type(good)(0)
    reading = read_rows(
        {"prompt": "Hi", "completion": "a", "label": good},
        {"prompt": "Ho", "completion": "c", "label": good},
        {"prompt": [{"role": "user", "content": "Hi"}], "label": bad}
        | {"completion": [{"role": "assistant", "content": "b"}]},
    )
    (group,) = reading.groups
    assert (group.responses, group.scores, group.line) == (("a", "b"), (1, 0), 1)
    assert reading.skipped == ALONE


def test_kto_keeps_rows_apart_that_ask_something_else(read_rows: ReadRows) -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("find", "add")]
    asked = [{"tools": tools[:1]}, {"tools": tools[1:]}, {"task": "chat"}]
    good, bad = (
        [{"prompt": "Hi", "completion": text, "label": label} | more for more in asked]
        for text, label in (("a", True), ("b", False))
    )
    groups = read_rows(*good, *bad).groups
    assert [(group.tools, group.task) for group in groups] == [((tools[0],), None), ((tools[1],), None), ((), "chat")]
    assert {group.scores for group in groups} == {(1, 0)}


# --- overall scores from capability grades -------------------------------------------------------------------------


def graded(task: str, scores: tuple[float, ...] | None = None, **capabilities: Grades) -> Group:
    return Group(task=task, prompt="p", responses=("a", "b"), scores=scores, capabilities=capabilities)


@pytest.mark.parametrize(
    ("groups", "scores"),
    [
        ([graded("chat", logic=(1, 3), warmth=(100, 0))], (0, 0)),
        ([graded("qa", logic=(10, 30)), graded("chat", logic=(1, 3))], (-1, 1)),
        ([graded("chat", logic=(1, 3), warmth=(None, 2), tone=(4, 4))], (-0.5, 1 / 3)),
    ],
)
def test_scores_are_the_mean_of_grades_standardized_per_task(groups: list[Group], scores: tuple) -> None:
    made = overall_from_capabilities(groups)[-1]
    assert made.scores == pytest.approx(scores)
    assert made.scores_derived


def test_the_scale_may_come_from_other_groups_and_given_labels_stay() -> None:
    (made,) = overall_from_capabilities([graded("chat", logic=(1, 3))], scales_of=[graded("chat", logic=(0, 2))])
    assert made.scores == pytest.approx((0, 2))
    kept = [graded("chat", scores=(1, 2), logic=(2, 1)), graded("chat", logic=(2, None))]
    assert overall_from_capabilities(kept) == kept
