"""Rows with graded or ranked responses, in each public schema; the rows are written for these tests."""

from collections.abc import Callable
from typing import Any

import pytest

from dmoerm.data.readers import Reading
from dmoerm.errors import DataError
from dmoerm.schema import Group, Pair

ReadRows = Callable[..., Reading]
ReadOne = Callable[..., Group]
USER = {"role": "user", "content": "Hi"}
MTMC = {"label": "闲聊", "src": ["你好"], "tgt": [], "response": ["好", "不好"], "rank": [1, 2]}
HELPSTEER3 = {"domain": "stem", "context": [USER], "response1": "a", "response2": "b", "overall_preference": -2}


def rating(value: str) -> dict[str, str]:
    return {"Rating": value, "Rationale": "because"}


def completion(response: str, overall: float | None, helpfulness: str, **further: Any) -> dict[str, Any]:
    annotations = {"helpfulness": rating(helpfulness), "honesty": rating("N/A")}
    return {"response": response, "overall_score": overall, "annotations": annotations, "critique": "…", **further}


def helpsteer(prompt: str, response: str, helpfulness: int, **grades: int) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 1, **grades}


ULTRAFEEDBACK = {"instruction": "Hi", "completions": [completion("a", 8, "4"), completion("b", 3, "2")]}


def test_mtmc_keeps_the_whole_conversation(read_one: ReadOne) -> None:
    row = {
        "label": "角色扮演",
        "src": ["你好", "再见"],
        "tgt": ["您好"],
        "response": ["甲", "乙", "丙"],
        "rank": [2, 1, 2],
    }
    group = read_one(row)
    assert group.task == "roleplay"
    assert [m.content for m in group.prompt if not isinstance(m, str)] == ["你好", "您好", "再见"]
    assert group.pairs() == [Pair(1, 0), Pair(1, 2)]


def test_mtmc_with_another_label_is_left_to_the_router(read_rows: ReadRows) -> None:
    reading = read_rows(MTMC | {"label": "其他"})
    assert [group.task for group in reading.groups] == [None]
    assert list(reading.notes.values()) == [1]


def test_mtmc_turns_must_alternate(read_rows: ReadRows) -> None:
    with pytest.raises(DataError, match="tgt: has 1 turns where src has 1; give the model's turns but the last"):
        read_rows(MTMC | {"tgt": ["您好"]})


def test_ultrafeedback_ratings_become_capabilities(read_one: ReadOne) -> None:
    group = read_one(ULTRAFEEDBACK)
    assert group.scores == (8, 3)
    assert group.capabilities == {"helpfulness": (4, 2)}


def test_ultrafeedback_overall_scores(read_rows: ReadRows) -> None:
    fine = [
        completion("a", None, "4") | {"fine-grained_score": 4.5},
        completion("b", 9, "2") | {"fine-grained_score": 2},
    ]
    some = [completion("a", 5, "4"), completion("b", None, "2"), completion("c", 7, "3")]
    none = [completion("a", None, "4"), completion("b", None, "N/A")]
    reading = read_rows(*({"instruction": "Hi", "completions": rows} for rows in (fine, some, none)))
    assert [group.scores for group in reading.groups] == [(4.5, 2), (5, 7), None]
    assert reading.groups[1].capabilities == {"helpfulness": (4, 3)}
    assert reading.groups[2].capabilities == {"helpfulness": (4, None)}
    assert reading.skipped == {"response: no overall score": 1}


def test_an_empty_completion_is_left_out_and_counted(read_rows: ReadRows) -> None:
    rows = [completion("a", 5, "4"), completion("", 1, "1"), completion("c", 7, "3")]
    reading = read_rows({"instruction": "Hi", "completions": rows})
    assert reading.groups[0].responses == ("a", "c")
    assert reading.groups[0].scores == (5, 7)
    assert reading.skipped == {"response: empty": 1}


def test_helpsteer_rows_of_one_prompt_are_one_group(read_rows: ReadRows) -> None:
    reading = read_rows(
        helpsteer("Hi", "a", 4, verbosity=2),
        helpsteer("alone", "a", 4),
        helpsteer("Hi ", "b", 3, verbosity=0),
    )
    assert reading.groups[0].responses == ("a", "b")
    assert reading.groups[0].scores == (4, 3)
    assert reading.groups[0].capabilities == {"correctness": (1, 1), "verbosity": (2, 0)}
    assert reading.skipped == {"row: fewer than two usable responses to the prompt": 1}


def test_helpsteer2_conversations_are_split(read_one: ReadOne) -> None:
    prompt = "Hi\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nWhy?"
    group = read_one(helpsteer(prompt, "a", 4), helpsteer(prompt, "b", 3))
    turns = [(m.role, m.content) for m in group.prompt if not isinstance(m, str)]
    assert turns == [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]


def test_helpsteer3_preferences(read_one: ReadOne) -> None:
    people = [{"score": -3, "reasoning": "…"}, {"score": 1, "reasoning": "…"}]
    group = read_one(HELPSTEER3 | {"individual_preference": people})
    assert group.task == "stem"
    assert group.scores == (1, -1)
    assert group.annotators == {"overall": ((1.5, -0.5), (-1.5, 0.5))}
