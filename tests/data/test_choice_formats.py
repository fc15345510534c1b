"""Rows with a chosen and a rejected response, in each public schema; the rows are written for these tests."""

from collections.abc import Callable
from typing import Any

import pytest

from dmoerm.data.readers import Reading
from dmoerm.errors import DataError
from dmoerm.schema import Group, Message, Pair

ReadRows = Callable[..., Reading]
ReadOne = Callable[..., Group]
USER = {"role": "user", "content": "Hi"}
TRL = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
REWARDBENCH = {"prompt": "Hi", "chosen": "a", "rejected": "b", "subset": "hep-cpp", "id": 7}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_trl_standard_with_margin(read_one: ReadOne) -> None:
    group = read_one(TRL | {"margin": 0.5, "task": "chat", "prompt_id": "x"})
    assert (group.prompt, group.responses, group.ranks) == ("Hi", ("a", "b"), (1, 2))
    assert (group.margin, group.task, group.id) == (0.5, "chat", "x")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is", ("blue.", "black.")),
        ("天空是蓝的", "天空是绿的", "天空是", ("蓝的", "绿的")),
        ("One two", "One two three", "One", ("two", "two three")),
    ],
)
def test_trl_implicit_prompt(chosen: str, rejected: str, prompt: str, responses: tuple, read_one: ReadOne) -> None:
    group = read_one({"chosen": chosen, "rejected": rejected})
    assert (group.prompt, group.responses) == (prompt, responses)


def test_trl_without_any_prompt_is_a_bad_row(read_rows: ReadRows) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: prompt: .*share no beginning.*field of its own"):
        read_rows({"chosen": "yes", "rejected": "no"})


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
    assert [message.role for message in group.prompt if not isinstance(message, str)] == [
        *("system", "user", "assistant", "user")
    ]


def test_trl_leaves_out_what_holds_no_preference(read_rows: ReadRows) -> None:
    reading = read_rows(
        {"prompt": "Hi", "chosen": "a", "rejected": "a"},
        {"prompt": "Hi", "chosen": "a", "rejected": " "},
        {"chosen": [USER, said("a"), USER, said("b")], "rejected": [USER, said("c"), USER, said("d")]},
    )
    assert reading.groups == []
    assert reading.rows == 3
    assert reading.skipped == {
        "row: the responses are the same text": 1,
        "row: fewer than two usable responses to the prompt": 1,
        "row: chosen and rejected differ in more than one last answer": 1,
    }


def test_trl_scores(read_rows: ReadRows) -> None:
    scored = [TRL | {"score_chosen": a, "score_rejected": b} for a, b in ((8, 5.5), (5, 5), (4, 5))]
    reading = read_rows(*scored)
    assert [group.grades for group in reading.groups] == [(8, 5.5), (5, 5), (-1, -2)]
    assert sum(reading.notes.values()) == 2


def test_hh_keeps_the_conversation(read_one: ReadOne) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why: \n\nA question\n\nAssistant:"
    group = read_one({"chosen": f"{start} a", "rejected": f"{start} b\n\nc"})
    assert [m.role for m in group.prompt if not isinstance(m, str)] == ["user", "assistant", "user"]
    assert group.responses == ("a", "b\n\nc")


def test_hh_leaves_out_transcripts_without_a_shared_prompt(read_rows: ReadRows) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: "
    reading = read_rows(
        {"chosen": start + "a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"},
        {"chosen": start + "a", "rejected": start + "b\n\nHuman: And?"},
    )
    assert sum(reading.skipped.values()) == 2
    with pytest.raises(DataError, match="chosen: is not a transcript"):
        read_rows({"chosen": "Hi", "rejected": "Ho"}, format="hh")


def test_reward_benchmarks(read_one: ReadOne) -> None:
    assert read_one(REWARDBENCH).task == "hep-cpp"
    second = {"id": "1", "prompt": "Hi", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1}
    group = read_one(second | {"subset": "Precise IF"})
    assert group.task == "precise_if"
    assert group.pairs() == [Pair(0, 1), Pair(0, 2), Pair(0, 3)]
    third = {
        "id": "2",
        "prompt": "Hi",
        "chosen": ["a", "b", "c"],
        "rejected": ["d", "e", "f"],
        "domain": "safety-refuse",
    }
    group = read_one(third)
    assert group.task == "safety-refuse"
    assert len(group.pairs()) == 9


def test_the_system_column_of_a_trl_row_is_the_system_message(read_one: Callable[..., Group]) -> None:
    system = Message(role="system", content="Be brief.")
    row = {"system": "Be brief.", "prompt": "Hi", "chosen": "a", "rejected": "b"}
    assert read_one(row).prompt == (system, Message(role="user", content="Hi"))
    assert read_one(row | {"system": ""}).prompt == "Hi"
    turns = [{"role": "user", "content": "Hi"}]
    sides = {name: [*turns, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    for prompt in (None, turns, [{"role": "system", "content": "Be brief."}, *turns]):
        assert read_one(row | sides | {"prompt": prompt}).prompt == (system, Message(role="user", content="Hi"))


def test_a_system_message_in_the_prompt_goes_before_the_column(read_rows: Callable[..., Reading]) -> None:
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    reading = read_rows({"system": "Be brief.", "prompt": prompt, "chosen": "a", "rejected": "b"})
    assert reading.groups[0].prompt[0] == Message(role="system", content="Be kind.")
    assert reading.notes == {"the column system differs from the prompt's system message; the message was kept": 1}
