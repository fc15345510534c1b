"""Rows as they are published; their texts are written for these tests."""

from collections.abc import Callable
from typing import Any

import pytest

from dmoerm.data.readers import Reading
from dmoerm.errors import DataError
from dmoerm.schema import Group, Message

ReadRows = Callable[..., Reading]
ReadOne = Callable[..., Group]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def part(text: str | None, **other: Any) -> list[dict[str, Any]]:
    return [{"type": "text" if text else "image", "text": text, "image": None, "mimeType": None, **other}]


@pytest.mark.parametrize(
    ("winner", "ranks"),
    [("model_a", (1, 2)), ("model_b", (2, 1)), ("tie", (1, 1)), ("tie (bothbad)", (1, 1)), ("both_bad", (1, 1))],
)
def test_arena(winner: str, ranks: tuple, read_rows: ReadRows) -> None:
    """Columns of lmsys/chatbot_arena_conversations; content in parts as in lmarena-ai/arena-human-preference-140k."""
    old = {"question_id": "58210e39", "model_a": "x", "model_b": "y", "judge": "arena_user_973", "turn": 1}
    old |= {"conversation_a": [user("Hi"), said("a")], "conversation_b": [user("Hi"), said("b")], "winner": winner}
    new = {"id": "c4b9710c", "model_a": "x", "model_b": "y", "winner": winner, "is_code": False}
    new |= {
        "conversation_a": [user(part("Hi")), said(part("a"))],
        "conversation_b": [user(part("Hi")), said(part("b"))],
    }
    reading = read_rows(old, new)
    assert [(group.id, group.responses, group.ranks) for group in reading.groups] == [
        ("58210e39", ("a", "b"), ranks),
        ("c4b9710c", ("a", "b"), ranks),
    ]
    assert sum(reading.notes.values()) == (2 if "bad" in winner else 0)


def test_arena_leaves_out_longer_conversations_and_images(read_rows: ReadRows) -> None:
    start = [user("Hi")]
    longer = [[*start, said(text), user("And?"), said("c")] for text in "ab"]
    shown = [user(part(None)), said("a")]
    row = {"winner": "model_a", "conversation_a": longer[0], "conversation_b": longer[1]}
    reading = read_rows(row, row | {"conversation_a": shown, "conversation_b": shown})
    assert reading.skipped == {
        "row: chosen and rejected differ in more than one last answer": 1,
        "row: a message has a part that is not text": 1,
    }


@pytest.mark.parametrize(
    ("winner", "ranks"), [("a", (1, 2)), ("Model B", (2, 1)), ("response_b", (2, 1)), ("Tie", (1, 1))]
)
def test_two_responses_and_a_winner(winner: str, ranks: tuple, read_one: ReadOne) -> None:
    row = {"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": winner}
    assert read_one(row).ranks == ranks


def test_a_winner_that_is_a_number_is_refused(read_rows: ReadRows) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: winner: is not a winner \(got 1\); write a, b or tie"):
        read_rows({"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": 1})


def test_the_arena_votes_with_lists_as_json(read_rows: ReadRows) -> None:
    """Columns of lmarena-ai/arena-human-preference-55k."""
    row = {"id": 30192, "model_a": "x", "model_b": "y", "prompt": '["Hi"]', "response_a": '["a"]'}
    row |= {"response_b": '["b \\"c\\""]', "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
    longer = {"prompt": '["Hi","And?"]', "response_a": '["a","b"]', "response_b": '["a",null]'}
    reading = read_rows(row, row | longer | {"response_b": '["a","d"]'}, row | longer)
    first, second = reading.groups
    assert (first.prompt, first.responses, first.ranks) == ("Hi", ("a", 'b "c"'), (2, 1))
    assert (len(second.prompt), second.responses) == (3, ("b", "d"))
    assert reading.skipped == {"row: fewer than two usable responses to the prompt": 1}
    with pytest.raises(DataError, match="exactly one must be 1"):
        read_rows(row | {"winner_tie": 1})


def test_shp(read_one: ReadOne) -> None:
    row = {"post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": "Why?"}
    row |= {"c_root_id_A": "hkh25sc", "human_ref_A": "a", "human_ref_B": "b", "score_A": 340, "score_B": 166}
    group = read_one(row | {"labels": 1})
    assert (group.prompt, group.responses, group.ranks, group.task) == ("Why?", ("a", "b"), (1, 2), "askculinary")
    assert read_one(row | {"labels": 0}).ranks == (2, 1)


@pytest.mark.parametrize("good", [True, 1, "true", "True", "1"])
def test_kto_joins_the_rows_of_a_prompt(good: Any, read_rows: ReadRows) -> None:
    bad = "False" if isinstance(good, str) else type(good)(0)
    turns = [user("Hi")]
    reading = read_rows(
        {"prompt": "Hi", "completion": "a", "label": good},
        {"prompt": "Ho", "completion": "c", "label": good},
        {"prompt": turns, "completion": [said("b")], "label": bad},
    )
    (group,) = reading.groups
    assert (group.responses, group.scores, group.line) == (("a", "b"), (1, 0), 1)
    assert reading.skipped == {"row: fewer than two usable responses to the prompt": 1}


def test_kto_keeps_rows_apart_that_ask_something_else(read_rows: ReadRows) -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("find", "add")]
    asked = [{"tools": tools[:1]}, {"tools": tools[1:]}, {"task": "chat"}]
    rows = [
        {"prompt": "Hi", "completion": text, "label": label} | more
        for more in asked
        for text, label in (("a", True), ("b", False))
    ]
    groups = read_rows(*rows[::2], *rows[1::2]).groups
    assert [(group.tools, group.task, group.scores) for group in groups] == [
        ((tools[0],), None, (1, 0)),
        ((tools[1],), None, (1, 0)),
        ((), "chat", (1, 0)),
    ]


def test_nectar(read_one: ReadOne) -> None:
    answers = [{"answer": text, "model": "m", "rank": rank} for text, rank in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    more = {"turns": 1, "num_responses": 3, "source": ["sharegpt"], "good_natured": True}
    group = read_one({"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": answers} | more)
    assert group.prompt == (Message(role="user", content="Hi"),)
    assert group.ranks == (1, 2, 3)
    for value in (True, 3, "a", {"rank": 1}, [True]):
        with pytest.raises(DataError, match="unknown format"):
            read_one({"prompt": "Hi", "answers": value})


@pytest.mark.parametrize(
    ("row", "prompt", "grades"),
    [
        ({"question": "Hi", "chosen": "a", "rejected": "b"}, "Hi", (-1, -2)),
        ({"input": "Hi", "chosen": "a", "rejected": "b", "chosen_score": 8.0, "rejected_score": 3}, "Hi", (8, 3)),
        ({"instruction": "Add.", "input": "1, 2", "chosen": "a", "rejected": "b"}, "Add.\n1, 2", (-1, -2)),
        ({"instruction": "Hi", "chosen_response": "a", "rejected_response": "b"}, "Hi", (-1, -2)),
    ],
)
def test_orca_argilla_and_alpaca(row: dict[str, Any], prompt: str, grades: tuple, read_one: ReadOne) -> None:
    group = read_one(row | {"system": ""})
    assert (group.prompt, group.responses, group.grades) == (prompt, ("a", "b"), grades)
    system, question = read_one(row | {"system": "Be brief."}).prompt
    assert (system, question) == (Message(role="system", content="Be brief."), Message(role="user", content=prompt))


def test_sharegpt_turns(read_one: ReadOne) -> None:
    turns = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Yes?"), ("human", "Why?")]
    conversation = [{"from": speaker, "value": text} for speaker, text in turns]
    sides = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    group = read_one({"conversations": conversation} | sides)
    assert [m.role for m in group.prompt if not isinstance(m, str)] == ["system", "user", "assistant", "user"]
    assert group.responses == ("chosen", "rejected")


def test_content_parts_and_the_developer_role(read_one: ReadOne) -> None:
    prompt = [{"role": "developer", "content": part("Be brief.")}, user([*part("Hi"), *part(" there")])]
    for row in ({"responses": ["a", "b"], "scores": [1, 0]}, {"chosen": "a", "rejected": "b"}):
        assert read_one({"prompt": prompt} | row).prompt == (
            Message(role="system", content="Be brief."),
            Message(role="user", content="Hi there"),
        )
