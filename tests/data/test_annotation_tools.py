"""Exports of annotation tools; the rows are written for these tests, in the form that the tools write."""

from collections.abc import Callable
from typing import Any

import pytest

from dmoerm.data.readers import Reading
from dmoerm.errors import DataError
from dmoerm.schema import Group, Pair

ReadRows = Callable[..., Reading]
ReadOne = Callable[..., Group]
FIELDS = {"prompt": "Hi", "response_2": "b", "response_1": "a"}


def argilla(**answers: list[Any]) -> dict[str, Any]:
    responses = {
        name: [{"value": value, "user_id": f"u{i}"} for i, value in enumerate(values)]
        for name, values in answers.items()
    }
    return {"id": "7", "fields": FIELDS, "responses": responses, "metadata": {"task": "chat"}, "suggestions": {}}


def studio(*annotations: list[dict[str, Any]], **data: str) -> dict[str, Any]:
    entries = [{"completed_by": i, "was_cancelled": False, "result": list(r)} for i, r in enumerate(annotations)]
    return {"id": 7, "data": FIELDS | data, "annotations": entries, "created_at": "2024-01-01", "project": 3}


def result(kind: str, value: dict[str, Any], name: str = "comparison", to_name: str = "x,y") -> dict[str, Any]:
    return {"id": "r", "from_name": name, "to_name": to_name, "type": kind, "value": value}


@pytest.mark.parametrize("chosen", ["response_1", "Response 1", "1", "left"])
def test_argilla_labels_of_several_people(chosen: str, read_one: ReadOne) -> None:
    group = read_one(argilla(preference=[chosen, "tie", "response_1"], wit=["response_2"]))
    assert (group.id, group.task, group.responses) == ("7", "chat", ("a", "b"))
    assert group.scores == pytest.approx((2.5 / 3, 0.5 / 3))
    assert group.annotators["overall"] == ((1, 0.5, 1), (0, 0.5, 0))
    assert group.annotators["wit"] == ((0, None, None), (1, None, None))
    assert group.capabilities == {"wit": (0, 1)}


@pytest.mark.parametrize(
    "ranking",
    [["response_2", "response_1"], [{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}]],
)
def test_argilla_rankings(ranking: list, read_one: ReadOne) -> None:
    assert read_one(argilla(ranking=[ranking])).pairs() == [Pair(1, 0)]


def test_argilla_ratings_of_single_responses(read_one: ReadOne) -> None:
    group = read_one(argilla(**{"response_1-rating": [4, 2], "response_2-rating": [1], "logic_response_2": [3]}))
    assert group.scores == (3, 1)
    assert group.annotators["overall"] == ((4, 2), (1, None))
    assert group.capabilities == {"logic": (None, 3)}


def test_argilla_flat_columns(read_rows: ReadRows) -> None:
    columns = {
        "preference.responses": ["response_1", "response_2", "response_2"],
        "preference.responses.users": ["x", "y", "z"],
        "preference.responses.status": ["submitted", "discarded", "draft"],
        "comment.responses": ["A fine text.", None],
        "preference.suggestion": "response_2",
    }
    reading = read_rows({"id": "7", **FIELDS, **columns})
    assert reading.groups[0].scores == (1, 0)
    assert not reading.unknown_columns


def test_label_studio(read_rows: ReadRows) -> None:
    first = [result("pairwise", {"selected": "left"}), result("choices", {"choices": ["Response 2"]}, "wit")]
    second = [result("pairwise", {"selected": "right"}), result("rating", {"rating": 4}, "logic", "response_1")]
    canceled = [result("pairwise", {"selected": "right"})]
    row = studio(first, second, canceled, task="chat")
    row["annotations"][2]["was_cancelled"] = True
    row["annotations"][1]["completed_by"] = {"id": 5, "email": "ben@example.org"}
    reading = read_rows(row)
    (group,) = reading.groups
    assert (group.id, group.task) == ("7", "chat")
    assert group.annotators["overall"] == ((1, 0), (0, 1))
    assert group.capabilities == {"wit": (0, 1), "logic": (4, None)}
    assert not reading.unknown_columns


@pytest.mark.parametrize("selected", ["answer2", "right"])
def test_label_studio_names_its_choices_after_fields(selected: str, read_one: ReadOne) -> None:
    row = studio([result("pairwise", {"selected": selected}, "pw")])
    row["data"] = {"prompt": "Hi", "answer1": "a", "answer2": "b"}
    assert read_one(row).pairs() == [Pair(1, 0)]


def test_label_studio_takes_the_order_of_the_tags(read_one: ReadOne) -> None:
    row = studio([result("pairwise", {"selected": "left"}, to_name="response_2,response_1")])
    assert read_one(row).pairs() == [Pair(1, 0)]


def test_more_than_nine_responses_are_in_the_order_of_their_numbers(read_one: ReadOne) -> None:
    fields = {f"generation-{i}": f"text {i}" for i in range(12)}
    row = argilla(**{"generation-11-rating": [5], "generation-1-rating": [3]}) | {
        "fields": {"instruction": "Hi", **fields}
    }
    group = read_one(row | {"responses": row["responses"] | {"wit": [{"value": "generation-11", "user_id": "u"}]}})
    assert group.responses == tuple(f"text {i}" for i in range(12))
    assert {index for index, grades in enumerate(group.annotators["overall"]) if any(grades)} == {1, 11}
    assert group.capabilities["wit"] == (0,) * 11 + (1,)


def test_rows_without_answers_are_counted_and_unnamed_fields_are_errors(read_rows: ReadRows) -> None:
    reading = read_rows(argilla())
    assert reading.skipped == {"row: no preference is given": 1}
    assert read_rows(studio()).skipped == {"row: no preference is given": 1}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: has no responses .*name the fields with responses response_1"):
        read_rows(argilla() | {"fields": {"prompt": "Hi", "summary": "a"}})
    with pytest.raises(DataError, match="has no prompt"):
        read_rows(studio() | {"data": {"response_1": "a", "response_2": "b"}})
