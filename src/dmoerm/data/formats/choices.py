"""Rows with a chosen and a rejected response, a ranking or a vote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from ...errors import DataError
from ...message import Message
from ..values import (
    Row,
    SkippedRow,
    alternate,
    as_name,
    checked,
    conversation,
    last_answers,
    messages,
    need,
    number,
    parsed,
)
from . import Format, column, each

# --- a chosen and a rejected response ------------------------------------------------------------------------------

_CHOICE = frozenset({"chosen", "rejected", "margin", "score_chosen", "score_rejected"})
_ORCA_NAMES = {
    "chosen_response": "chosen",
    "rejected_response": "rejected",
    "chosen_score": "score_chosen",
    "rejected_score": "score_rejected",
    "chosen_avg_rating": "score_chosen",
    "rejected_avg_rating": "score_rejected",
}
_QUESTIONS = ("question", "instruction", "input")


def _choice_labels(row: Row) -> dict[str, Any]:
    """Return the labels of a choice. Scores (equal: a tie) replace the ranks unless they contradict the choice."""
    margin = {} if row.get("margin") is None else {"margin": number(row["margin"], "margin")}
    names = ("score_chosen", "score_rejected")
    if None not in map(row.get, names):
        scores = [number(row[name], name) for name in names]
        if scores[0] >= scores[1]:
            return margin | {"scores": scores}
    return margin | {"ranks": [1, 2]}


def _trl(row: Row) -> dict[str, Any]:
    """Read a TRL preference row, standard or conversational, with an explicit or implicit prompt.

    An implicit prompt is the shared beginning of chosen and rejected: whole messages, or whole words of a text.
    A text in `system` becomes the system message, unless the prompt has one of its own.
    """
    chosen, rejected = (need(row, side, Any) for side in ("chosen", "rejected"))
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        # A single turn, as in ShareGPT's rows, may stand without a list.
        sides = [
            messages([side] if isinstance(side, Mapping) else side, field)
            for side, field in ((chosen, "chosen"), (rejected, "rejected"))
        ]
        shared, responses = last_answers(*sides)
        prompt = _history(row, shared)
    elif "prompt" in row:  # an empty cell is missing: its prompt is not the beginning that the texts may share
        prompt, responses = conversation(need(row, "prompt", Any), "prompt"), [chosen, rejected]
    else:
        end = _shared_words(chosen, rejected)
        prompt, responses = chosen[:end].strip(), [chosen[end:], rejected[end:]]
        if not prompt:
            hint = "give the prompt in a field of its own"
            raise DataError("is missing, and chosen and rejected share no beginning", field="prompt", hint=hint)
    if row.get("system"):
        turns = _turns(prompt)
        prompt = turns
        if turns[0].role != "system":
            prompt = [Message(role="system", content=need(row, "system")), *turns]
    return {"prompt": prompt, "responses": responses} | _choice_labels(row)


def _turns(prompt: str | list[Message]) -> list[Message]:
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt


def _shared_words(first: str, second: str) -> int:
    """Return the length of the shared beginning up to the end of a word, or of all shared characters without spaces."""
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    last = "" if shared[-1:].isspace() else (shared.split() or [""])[-1]
    words = shared[: len(shared) - len(last)]
    return len(words if words.strip() else shared)


def _history(row: Row, shared: list[Message]) -> str | list[Message]:
    """Combine the prompt field with the turns that chosen and rejected share; many files repeat the prompt there."""
    if row.get("prompt") is None:
        if not shared:
            raise DataError("is missing, and chosen and rejected share no turn", field="prompt", hint="add the field")
        return shared
    prompt = conversation(row["prompt"], "prompt")
    if not shared:
        return prompt
    given = _turns(prompt)
    if given[-len(shared) :] == shared:
        return given
    return shared if all(turn in shared for turn in given) else given + shared


def _orca(row: Row) -> dict[str, Any]:
    """Read a row with its prompt in `question` (Intel), `input` (Argilla), or `instruction` and `input` (Alpaca)."""
    renamed = {_ORCA_NAMES.get(name, name): value for name, value in row.items() if value is not None}
    parts = [need(row, name) for name in _QUESTIONS if row.get(name)]
    if not parts:
        raise DataError("is missing", field="question", hint=f"give one of {', '.join(_QUESTIONS)}")
    return _trl(renamed | {"prompt": "\n".join(parts)})


def _is_orca(row: Row) -> bool:
    sides = {"chosen", "rejected"} <= row.keys() or {"chosen_response", "rejected_response"} <= row.keys()
    return sides and "prompt" not in row and any(name in row for name in _QUESTIONS)


def _rewardbench(row: Row) -> dict[str, Any]:
    """Read a row of RewardBench 1 (one chosen, one rejected), RewardBench 2 or RM-Bench (lists of both)."""
    chosen, rejected = (
        [row[side]] if isinstance(row.get(side), str) else need(row, side, list[str]) for side in ("chosen", "rejected")
    )
    fields = {"responses": chosen + rejected, "ranks": [1] * len(chosen) + [2] * len(rejected)}
    tasks = [as_name(row[name], name) for name in ("domain", "subset") if row.get(name) is not None]
    return fields | ({"task": tasks[-1]} if tasks else {})


def _is_rewardbench(row: Row) -> bool:
    chosen: Any = row["chosen"]
    if isinstance(chosen, str):
        return "subset" in row
    return isinstance(chosen, list | tuple) and bool(chosen) and isinstance(chosen[0], str)


# --- transcripts: "\n\nHuman: …\n\nAssistant: …" -------------------------------------------------------------------

_TURN = re.compile(r"\n\n(Human|Assistant):")


def _is_transcript(text: object) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _transcript(text: str, field: str) -> list[Message]:
    before, *parts = _TURN.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        raise DataError("is not a transcript", field=field, value=text, hint='begin it with "\\n\\nHuman: "')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role="user" if who == "Human" else "assistant", content=text.strip()) for who, text in turns]


def _hh(row: Row) -> dict[str, Any]:
    """Read an hh-rlhf row: two transcripts that differ only in the assistant's last turn."""
    sides = [_transcript(need(row, field), field) for field in ("chosen", "rejected")]
    if any(side[-1].role != "assistant" for side in sides):
        raise SkippedRow("a transcript does not end with the assistant's turn", field="chosen")
    if sides[0][:-1] != sides[1][:-1]:
        raise SkippedRow("chosen and rejected do not answer the same prompt", field="chosen")
    return {"prompt": sides[0][:-1], "responses": [side[-1].content for side in sides]} | _choice_labels(row)


def _nectar_prompt(value: Any, field: str) -> Any:
    prompt = conversation(value, field)
    if not isinstance(prompt, str) or not _is_transcript(prompt):
        return prompt
    turns = _transcript(prompt, field)
    return turns if turns[-1].role == "user" else turns[:-1]


def _is_nectar(row: Row) -> bool:
    answers: Any = row["answers"]
    first = answers[0] if isinstance(answers, list) and answers else None
    return isinstance(first, dict) and "rank" in first


# --- votes ---------------------------------------------------------------------------------------------------------

_WINNERS = re.compile(r"(?:(?:model|response|answer|assistant|output)[ _-]?)?([ab])", re.IGNORECASE)
_TIES = {"tie", "draw", "equal", "both", "tie (bothbad)", "bothbad", "both_bad"}
_ONE_HOT = {"winner_model_a": [1, 2], "winner_model_b": [2, 1], "winner_tie": [1, 1]}


def _winner(value: Any, field: str) -> list[int]:
    """Return the ranks by the name of the winner. Numbers are refused: some files count from 0 and others from 1."""
    text = str(value).strip()
    if match := _WINNERS.fullmatch(text):
        return [1, 2] if match[1].lower() == "a" else [2, 1]
    if text.lower() not in _TIES:
        raise DataError("is not a winner", field=field, value=value, hint="write a, b or tie")
    return [1, 1]


def _votes(row: Row) -> dict[str, Any]:
    """Read two responses and `winner` (a, b or tie), or a row of lmarena-ai/arena-human-preference-55k.

    In the Arena's rows, prompt and responses are lists of turns, and `winner_model_a`, … are 0 or 1.
    """
    names = ("response_a", "response_b")
    if "winner" in row:
        prompt, ranks = conversation(need(row, "prompt", Any), "prompt"), _winner(need(row, "winner", Any), "winner")
        return {"prompt": prompt, "responses": [need(row, name) for name in names], "ranks": ranks}
    questions, *answers = (_vote_turns(row, name) for name in ("prompt", *names))
    padded = [side + [""] * (len(questions) - len(side)) for side in answers]
    prompt, responses = last_answers(*(alternate(questions, side) for side in padded))
    chosen = [ranks for name, ranks in _ONE_HOT.items() if str(row.get(name)) in ("1", "True", "true")]
    if len(chosen) != 1:
        value = {name: row.get(name) for name in _ONE_HOT}
        raise DataError("exactly one must be 1", field="winner_model_a", value=value, hint="correct the row")
    whole = prompt[0].content if len(prompt) == 1 else prompt
    return {"prompt": whole, "responses": responses, "ranks": chosen[0]}


def _vote_turns(row: Row, field: str) -> list[str]:
    """Return the turns of a field: a list, a list written as JSON, or one text. A null turn is empty."""
    value = parsed(need(row, field, Any))
    turns = checked(value if isinstance(value, list | tuple) else [value], field, list[str | None])
    return [turn or "" for turn in turns]


def _arena(row: Row) -> dict[str, Any]:
    """Read a row of lmsys/chatbot_arena_conversations or lmarena-ai/arena-human-preference-100k and -140k.

    A vote on conversations that differ before their last answers is left out, since no single answer explains it.
    """
    sides = [messages(need(row, field, Any), field) for field in ("conversation_a", "conversation_b")]
    prompt, responses = last_answers(*sides)
    identity = {"id": row["question_id"]} if isinstance(row.get("question_id"), str) else {}
    return identity | {"prompt": prompt, "responses": responses}


FORMATS = (
    Format("trl", {"chosen", "rejected"}, compute=_trl, also=_CHOICE | {"prompt", "system"}, order=2, handwritten=True),
    Format("orca", compute=_orca, also=_CHOICE | {"system", *_QUESTIONS, *_ORCA_NAMES}, looks=_is_orca),
    Format(
        "sharegpt",
        needs={"conversations", "chosen", "rejected"},
        compute=lambda row: _trl({**row, "prompt": messages(need(row, "conversations", Any), "conversations")}),
        also=_CHOICE | {"system"},
    ),
    Format(
        "rewardbench",
        needs={"prompt", "chosen", "rejected"},
        fields={"prompt": column("prompt", conversation)},
        compute=_rewardbench,  # all chosen responses share rank 1, all rejected ones rank 2
        also={"subset", "domain"},
        looks=_is_rewardbench,
    ),
    Format(
        "hh",
        needs={"chosen", "rejected"},
        compute=_hh,
        also=_CHOICE,
        looks=lambda row: "prompt" not in row and all(_is_transcript(row[name]) for name in ("chosen", "rejected")),
    ),
    Format(
        "nectar",
        needs={"prompt", "answers"},
        fields={
            "prompt": column("prompt", _nectar_prompt),
            "responses": each("answers", "answer"),
            "ranks": each("answers", "rank", number),
        },
        looks=_is_nectar,
    ),
    Format(
        "arena",
        needs={"conversation_a", "conversation_b", "winner"},
        fields={"ranks": column("winner", _winner)},
        compute=_arena,
        also={"question_id"},
    ),
    Format(
        "votes",
        needs={"prompt", "response_a", "response_b"},
        compute=_votes,
        also={"winner", *_ONE_HOT},
        looks=lambda row: "winner" in row or _ONE_HOT.keys() <= row.keys(),
    ),
)
