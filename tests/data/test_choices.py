"""Rows with a chosen and a rejected response, a ranking or a vote, as they are published; the texts are made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dmoerm.data.readers import Reading
from dmoerm.errors import DataError
from dmoerm.schema import Group, Message, Pair

ReadRows = Callable[..., Reading]
ReadOne = Callable[..., Group]
TRL = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
LAST = "row: chosen and rejected differ in more than one last answer"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def part(text: str | None) -> list[dict[str, Any]]:
    return [{"type": "text" if text else "image", "text": text, "image": None, "mimeType": None}]


USER = user("Hi")


def roles(group: Group) -> list[str]:
    return [message.role for message in group.prompt if not isinstance(message, str)]


# --- TRL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        (TRL, "Hi", ("a", "b")),
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "The sky is", ("blue.", "black.")),
        ({"chosen": "天空是蓝的", "rejected": "天空是绿的"}, "天空是", ("蓝的", "绿的")),
        ({"chosen": "One two", "rejected": "One two three"}, "One", ("two", "two three")),
    ],
)
def test_trl_texts(row: dict, prompt: str, responses: tuple, read_one: ReadOne) -> None:
    group = read_one(row | {"margin": 0.5, "task": "chat", "prompt_id": "x"})
    assert (group.prompt, group.responses, group.ranks) == (prompt, responses, (1, 2))
    assert (group.margin, group.task, group.id) == (0.5, "chat", "x")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [said("a")], "rejected": [said("b")]},
        {"prompt": "Hi", "chosen": [said("a")], "rejected": [said("b")]},
        {"chosen": [USER, said("a")], "rejected": [USER, said("b")]},
        {"prompt": "Hi", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
        {"prompt": [USER], "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
    ],
)
def test_trl_conversations(row: dict[str, Any], read_one: ReadOne) -> None:
    group = read_one(row)
    assert group.prompt in ("Hi", (Message(role="user", content="Hi"),))
    assert group.responses == ("a", "b")


def test_trl_keeps_the_history_and_the_system_prompt(read_one: ReadOne) -> None:
    history = [{"role": "system", "content": "Be kind."}, USER, said("Yes?"), USER]
    group = read_one({"prompt": "Hi", "chosen": [*history, said("a")], "rejected": [*history, said("b")]})
    assert roles(group) == ["system", "user", "assistant", "user"]


def test_trl_rows_without_a_preference_or_a_prompt(read_rows: ReadRows) -> None:
    reading = read_rows(
        TRL | {"rejected": "a"},
        TRL | {"rejected": " "},
        {"chosen": [USER, said("a"), USER, said("b")], "rejected": [USER, said("c"), USER, said("d")]},
    )
    assert reading.groups == []
    assert reading.rows == 3
    assert reading.skipped == {
        "row: the responses are the same text": 1,
        "row: fewer than two usable responses to the prompt": 1,
        LAST: 1,
    }
    with pytest.raises(DataError, match=r"rows\.jsonl:1: prompt: .*share no beginning.*field of its own"):
        read_rows({"chosen": "yes", "rejected": "no"})


def test_trl_scores(read_rows: ReadRows) -> None:
    reading = read_rows(*[TRL | {"score_chosen": a, "score_rejected": b} for a, b in ((8, 5.5), (5, 5), (4, 5))])
    assert [group.grades for group in reading.groups] == [(8, 5.5), (5, 5), (-1, -2)]


def test_the_system_column_is_the_system_message_unless_the_prompt_has_one(read_one: ReadOne) -> None:
    system = Message(role="system", content="Be brief.")
    row = {"system": "Be brief.", **TRL}
    assert read_one(row).prompt == (system, Message(role="user", content="Hi"))
    assert read_one(row | {"system": ""}).prompt == "Hi"
    sides = {name: [USER, said(name)] for name in ("chosen", "rejected")}
    for prompt in (None, [USER], [{"role": "system", "content": "Be brief."}, USER]):
        assert read_one(row | sides | {"prompt": prompt}).prompt == (system, Message(role="user", content="Hi"))
    own = read_one(row | {"prompt": [{"role": "system", "content": "Be kind."}, USER]})
    assert own.prompt[0] == Message(role="system", content="Be kind.")


@pytest.mark.parametrize(
    ("row", "prompt", "grades"),
    [
        ({"question": "Hi"}, "Hi", (-1, -2)),
        ({"input": "Hi", "chosen_score": 8.0, "rejected_score": 3}, "Hi", (8, 3)),
        ({"instruction": "Add.", "input": "1, 2"}, "Add.\n1, 2", (-1, -2)),
        ({"instruction": "Hi", "chosen_response": "a", "rejected_response": "b"}, "Hi", (-1, -2)),
    ],
)
def test_orca_argilla_and_alpaca(row: dict[str, Any], prompt: str, grades: tuple, read_one: ReadOne) -> None:
    sides = {} if "chosen_response" in row else {"chosen": "a", "rejected": "b"}
    group = read_one(row | sides | {"system": ""})
    assert (group.prompt, group.responses, group.grades) == (prompt, ("a", "b"), grades)
    system, question = read_one(row | sides | {"system": "Be brief."}).prompt
    assert (system, question) == (Message(role="system", content="Be brief."), Message(role="user", content=prompt))


def test_sharegpt_turns(read_one: ReadOne) -> None:
    turns = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Yes?"), ("human", "Why?")]
    conversation = [{"from": speaker, "value": text} for speaker, text in turns]
    sides = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    group = read_one({"conversations": conversation} | sides)
    assert roles(group) == ["system", "user", "assistant", "user"]
    assert group.responses == ("chosen", "rejected")


def test_content_parts_and_the_developer_role(read_one: ReadOne) -> None:
    prompt = [{"role": "developer", "content": part("Be brief.")}, user([*part("Hi"), *part(" there")])]
    for row in ({"responses": ["a", "b"], "scores": [1, 0]}, {"chosen": "a", "rejected": "b"}):
        assert read_one({"prompt": prompt} | row).prompt == (
            Message(role="system", content="Be brief."),
            Message(role="user", content="Hi there"),
        )


# --- transcripts, benchmarks, rankings -----------------------------------------------------------------------------


def test_hh_transcripts(read_one: ReadOne, read_rows: ReadRows) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why: \n\nA question\n\nAssistant:"
    group = read_one({"chosen": f"{start} a", "rejected": f"{start} b\n\nc"})
    assert roles(group) == ["user", "assistant", "user"]
    assert group.responses == ("a", "b\n\nc")
    short = "\n\nHuman: Hi\n\nAssistant: "
    others = ["\n\nHuman: Ho\n\nAssistant: b", short + "b\n\nHuman: And?"]
    assert sum(read_rows(*[{"chosen": short + "a", "rejected": text} for text in others]).skipped.values()) == 2
    with pytest.raises(DataError, match="chosen: is not a transcript"):
        read_rows({"chosen": "Hi", "rejected": "Ho"}, format="hh")


@pytest.mark.parametrize(
    ("row", "task", "pairs"),
    [
        ({"chosen": "a", "rejected": "b", "subset": "hep-cpp", "id": 7}, "hep-cpp", 1),
        ({"chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Precise IF"}, "precise_if", 3),
        ({"chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "safety-refuse"}, "safety-refuse", 9),
    ],
)
def test_reward_benchmarks(row: dict[str, Any], task: str, pairs: int, read_one: ReadOne) -> None:
    group = read_one({"prompt": "Hi"} | row)
    assert (group.task, len(group.pairs())) == (task, pairs)
    assert all(pair.better < len(row["chosen"]) <= pair.worse for pair in group.pairs())


def test_nectar(read_one: ReadOne) -> None:
    answers = [{"answer": text, "model": "m", "rank": rank} for text, rank in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    more = {"turns": 1, "num_responses": 3, "source": ["sharegpt"], "good_natured": True}
    group = read_one({"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": answers} | more)
    assert (group.prompt, group.ranks) == ((Message(role="user", content="Hi"),), (1, 2, 3))
    for value in (True, 3, "a", {"rank": 1}, [True]):
        with pytest.raises(DataError, match="unknown format"):
            read_one({"prompt": "Hi", "answers": value})


# --- votes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winner", "ranks"),
    [("model_a", (1, 2)), ("model_b", (2, 1)), ("tie", (1, 1)), ("tie (bothbad)", (1, 1)), ("both_bad", (1, 1))],
)
def test_arena(winner: str, ranks: tuple, read_rows: ReadRows) -> None:
    """Columns of lmsys/chatbot_arena_conversations; content in parts as in lmarena-ai/arena-human-preference-140k."""
    old = {"question_id": "5821", "model_a": "x", "model_b": "y", "judge": "arena_user_973", "turn": 1}
    old |= {"conversation_a": [USER, said("a")], "conversation_b": [USER, said("b")], "winner": winner}
    new = {"id": "c4b9", "winner": winner, "is_code": False}
    new |= {f"conversation_{side}": [user(part("Hi")), said(part(side))] for side in "ab"}
    reading = read_rows(old, new)
    assert [(group.id, group.responses, group.ranks) for group in reading.groups] == [
        ("5821", ("a", "b"), ranks),
        ("c4b9", ("a", "b"), ranks),
    ]


def test_arena_leaves_out_longer_conversations_and_images(read_rows: ReadRows) -> None:
    longer = {f"conversation_{side}": [USER, said(side), user("And?"), said("c")] for side in "ab"}
    shown = {f"conversation_{side}": [user(part(None)), said("a")] for side in "ab"}
    reading = read_rows({"winner": "model_a"} | longer, {"winner": "model_a"} | shown)
    assert reading.skipped == {LAST: 1, "row: a message has a part that is not text": 1}


@pytest.mark.parametrize(
    ("winner", "ranks"), [("a", (1, 2)), ("Model B", (2, 1)), ("response_b", (2, 1)), ("Tie", (1, 1)), (1, None)]
)
def test_two_responses_and_a_winner(winner: Any, ranks: tuple | None, read_one: ReadOne) -> None:
    row = {"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": winner}
    if ranks:
        assert read_one(row).ranks == ranks
        return
    with pytest.raises(DataError, match=r"rows\.jsonl:1: winner: is not a winner \(got 1\); write a, b or tie"):
        read_one(row)


def test_the_arena_votes_with_lists_as_json(read_rows: ReadRows) -> None:
    """Columns of lmarena-ai/arena-human-preference-55k."""
    row = {"id": 30192, "model_a": "x", "model_b": "y", "prompt": '["Hi"]', "response_a": '["a"]'}
    row |= {"response_b": '["b \\"c\\""]', "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
    longer = {"prompt": '["Hi","And?"]', "response_a": '["a","b"]', "response_b": '["a",null]'}
    reading = read_rows(row, row | longer)
    assert (reading.groups[0].prompt, reading.groups[0].responses) == ("Hi", ("a", 'b "c"'))
    assert reading.groups[0].pairs() == [Pair(1, 0)]
    assert reading.skipped == {"row: fewer than two usable responses to the prompt": 1}
    with pytest.raises(DataError, match="exactly one must be 1"):
        read_rows(row | {"winner_tie": 1})
