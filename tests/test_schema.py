import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.errors import DataError
from dmoerm.schema import (
    Group,
    Message,
    Pair,
    PairLabel,
    is_empty,
    ordered_pairs,
    parse_group,
    parse_query,
    prompt_key,
    stripped,
)

GRADES = st.lists(st.none() | st.integers(0, 4).map(float), max_size=6)


def row(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "responses": ["a", "b"], "scores": [2, 1], **fields}


@given(GRADES)
def test_pairs_start_with_the_better_response_and_leave_out_ties(grades: list[float | None]) -> None:
    pairs = ordered_pairs(grades)
    assert len(set(pairs)) == len(pairs)
    for better, worse, *_ in pairs:
        first, second = grades[better], grades[worse]
        assert first is not None
        assert second is not None
        assert first > second


@given(GRADES)
def test_negated_grades_swap_every_pair(grades: list[float | None]) -> None:
    negated = [None if grade is None else -grade for grade in grades]
    assert ordered_pairs(negated) == [Pair(pair.worse, pair.better) for pair in ordered_pairs(grades)]


def test_ranks_count_the_other_way() -> None:
    ranked = parse_group(row(scores=None, ranks=[1, 2]))
    assert ranked.pairs() == parse_group(row()).pairs() == [Pair(0, 1)]
    assert parse_group(row(scores=None, ranks=[1, 1])).pairs() == []


def test_pairs_of_a_capability() -> None:
    group = parse_group(row(responses=["a", "b", "c"], scores=[1, 1, 1], capabilities={"logic": [None, 1, 2]}))
    assert group.pairs("logic") == [Pair(2, 1)]
    assert group.pairs("empathy") == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scores": [1]}, r"scores: has 1 entries for 2 responses \(got \[1\]\)"),
        ({"scores": [1, math.nan]}, r"scores\.1: must be a finite number.*give a finite number"),
        ({"ranks": [1, 2]}, "both given.*keep the one"),
        ({"scores": None}, "neither scores, ranks nor capabilities"),
        ({"responses": ["a"]}, "responses: must have at least 2 entries, but has 1 .*at least two responses"),
        ({"scores": [1e308, -1e308]}, r"scores\.0: must be at most 1e\+18 .*give smaller numbers"),
        ({"capabilities": {"logic": [-1e308, 0]}}, r"capabilities\.logic\.0: must be at least -1e\+18"),
        ({"responses": ["a", " "]}, "response 1 is empty"),
        ({"prompt": " "}, "prompt: is empty"),
        ({"prompt": []}, "prompt: is empty"),
        ({"prompt": "\ud800"}, "surrogate.*valid Unicode"),
        ({"capabilities": {"logic": [1]}}, r"capabilities\.logic: has 1 entries .*got \[1\]"),
        ({"capabilities": {"logic": [1, math.inf]}}, r"logic\.1: must be a finite number"),
        ({"capabilities": {"structure": ["x", 1]}}, r"capabilities\.structure\.0: must be a number"),
        ({"annotators": {"overall": [[1]]}}, r"annotators\.overall: has 1 entries"),
        ({"annotators": {"overall": [[math.inf], [1]]}}, r"overall\.0\.0: must be a finite number"),
        ({"margin": math.inf}, "margin"),
        ({"margin": -1}, "margin"),
        ({"margin": 1e308}, "margin: must be at most"),
        ({"margin": 1, "responses": ["a", "b", "c"], "scores": [1, 2, 3]}, "exactly two responses"),
    ],
)
def test_a_bad_group_is_explained(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_group({name: value for name, value in row(**fields).items() if value is not None})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DataError, match="responses: field required; add the field"):
        parse_query({"prompt": "Why?"})


def test_unknown_fields_are_ignored() -> None:
    assert parse_group(row(colour="red")).responses == ("a", "b")


def test_annotators_may_grade_one_response_more_often_than_another() -> None:
    people = {"overall": [[4, 5, None], [2]], "logic": [[], [1]]}
    assert parse_group(row(annotators=people)).annotators == {"overall": ((4, 5, None), (2,)), "logic": ((), (1,))}


def test_ids_follow_from_the_content() -> None:
    assert parse_group(row()).id == parse_group(row(prompt="Why? ")).id
    assert parse_group(row()).id != parse_group(row(responses=["b", "a"])).id
    assert parse_group(row(id="mine")).id == "mine"


def test_prompt_key_depends_on_the_visible_text() -> None:
    assert prompt_key("caf\u00e9  au\nlait") == prompt_key("cafe\u0301 au lait")
    assert prompt_key((Message(role="user", content="Why?"),)) == prompt_key("Why?")
    conversation = (Message(role="user", content="Hi"), Message(role="assistant", content="Yes?"))
    assert prompt_key(conversation) != prompt_key("Hi Yes?")


def test_groups_are_frozen() -> None:
    group: Any = parse_group(row())
    with pytest.raises(ValueError, match="frozen"):
        group.task = "chat"
    assert isinstance(group, Group)


def test_human_grades_take_precedence_over_a_judge() -> None:
    labels = [PairLabel(0, 1, 0.2), PairLabel(0, 2, 0.9, 0.5), PairLabel(1, 2, 0.5)]
    group = parse_group(row(responses=["a", "b", "c"], scores=[1, 2, 3], capabilities={"logic": [2, 1, None]}))
    both = group.model_copy(update={"judge_labels": {"logic": tuple(labels), "empathy": tuple(labels)}})
    assert both.labeled_pairs("logic") == [Pair(0, 1), Pair(0, 2, 0.9, 0.5), Pair(1, 2, 0.5)]
    assert both.labeled_pairs("empathy") == [Pair(1, 0, 0.8), Pair(0, 2, 0.9, 0.5), Pair(1, 2, 0.5)]
    assert both.pairs("empathy") == []
    tied = group.model_copy(update={"capabilities": {"logic": (1, 1, None)}, "judge_labels": {"logic": (labels[0],)}})
    assert tied.labeled_pairs("logic") == []


def test_identical_responses_are_not_a_pair() -> None:
    labels = {"scores": [3, 1, 2], "capabilities": {"logic": [1, 2, None]}}
    group = parse_group(row(responses=["a", "a", "b"], **labels))
    assert group.pairs() == [Pair(0, 2), Pair(2, 1)]
    assert group.pairs("logic") == []
    assert group.identical_pairs() == 2
    labeled = group.model_copy(update={"judge_labels": {"wit": (PairLabel(0, 1, 0.9), PairLabel(1, 2, 0.8))}})
    assert labeled.labeled_pairs("wit") == [Pair(1, 2, 0.8)]


@pytest.mark.parametrize("judgment", [[0, 2, 0.5, 1], [1, 1, 0.5, 1], [-1, 1, 0.5, 1], [0, 1, 1.5, 1]])
def test_a_judgment_on_an_invalid_pair_is_refused(judgment) -> None:
    with pytest.raises(DataError, match="judge_labels"):
        parse_group(row(judge_labels={"logic": [judgment]}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" \tFine.\n\n", "Fine."),
        ("<|im_start|> Fine.<|im_end|>\n<|endoftext|>", "Fine."),
        ("<s>Fine.</s><pad><pad>", "Fine."),
        ("Fine.<end_of_turn>\n", "Fine."),
        ("Fine.<|im_end|> Or not?", "Fine.<|im_end|> Or not?"),
        ("<b>Fine</b>", "<b>Fine</b>"),
        ("<|x", "<|x"),
        ("a <| f |>", "a <| f |>"),  # operators of Elixir and F#
        ("1 < 2", "1 < 2"),
        (" <|eot_id|>\n</s>", ""),
        ("", ""),
    ],
)
def test_what_is_stripped_from_a_text(text, expected):
    assert stripped(text) == stripped(stripped(text)) == expected
    assert is_empty(text) == (not expected)


def test_a_text_of_many_special_tokens_takes_no_time():
    """Steps grow with the text's length: a million tokens took seconds, on the server's event loop."""
    assert stripped("x" + "<s>" * 300_000) == stripped("<s>" * 300_000 + "x") == "x"
    assert stripped("<|a|>" * 300_000) == ""


def test_responses_that_read_the_same_are_no_pair():
    assert Group(prompt="Why?", responses=("No.", "No.<|im_end|>\n"), scores=(1, 2)).pairs() == []
