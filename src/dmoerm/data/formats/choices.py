"""Rows with a chosen and a rejected response, a ranking or a vote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from ..values import (
    Row,
    SkippedRow,
    Turn,
    alternate,
    as_name,
    as_text,
    conversation,
    last_answers,
    messages,
    need,
    number,
    parsed,
    text_in,
    texts_in,
)
from . import Format, RawExample, column, each

# --- a chosen and a rejected response ------------------------------------------------------------------------------

_CHOICE = frozenset({"chosen", "rejected", "margin", "score_chosen", "score_rejected"})


def _choice_labels(row: Row) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the labels of a choice, and notes. Scores (equal: a tie) replace the ranks unless they contradict it."""
    labels: dict[str, Any] = {"ranks": [1, 2]}
    if row.get("margin") is not None:
        labels["margin"] = number(row["margin"], "margin")
    if row.get("score_chosen") is None or row.get("score_rejected") is None:
        return labels, ()
    scores = [number(row[name], name) for name in ("score_chosen", "score_rejected")]
    if scores[0] < scores[1]:
        return labels, ("score_chosen is below score_rejected; the choice was kept, the scores were not",)
    del labels["ranks"]
    notes = ("score_chosen equals score_rejected: taken as a tie",) if scores[0] == scores[1] else ()
    return labels | {"scores": scores}, notes


def _trl(row: Row) -> RawExample:
    """Read a TRL preference row, standard or conversational, with an explicit or implicit prompt.

    An implicit prompt is the shared beginning of chosen and rejected: whole messages, or whole words of a text.
    A text in `system` becomes the system message.
    """
    chosen, rejected = need(row, "chosen"), need(row, "rejected")
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        # A single turn, as in ShareGPT's rows, may stand without a list.
        sides = [
            messages([side] if isinstance(side, Mapping) else side, field)
            for side, field in ((chosen, "chosen"), (rejected, "rejected"))
        ]
        shared, responses = last_answers(*sides)
        prompt = _history(row, shared)
    elif "prompt" in row:  # an empty cell is missing: its prompt is not the beginning that the texts may share
        prompt, responses = conversation(need(row, "prompt"), "prompt"), [chosen, rejected]
    else:
        end = _shared_words(chosen, rejected)
        prompt, responses = chosen[:end].strip(), [chosen[end:], rejected[end:]]
        if not prompt:
            hint = "give the prompt in a field of its own"
            raise DataError("is missing, and chosen and rejected share no beginning", field="prompt", hint=hint)
    labels, notes = _choice_labels(row)
    prompt, system_notes = _with_system(prompt, row)
    return RawExample({"prompt": prompt, "responses": responses} | labels, notes + system_notes)


def _shared_words(first: str, second: str) -> int:
    """Return the length of the shared beginning up to the end of a word, or of all shared characters without spaces."""
    shorter = min(len(first), len(second))
    shared = first[: next((i for i in range(shorter) if first[i] != second[i]), shorter)]
    words = len(shared)
    while words and not shared[words - 1].isspace():
        words -= 1
    return words if shared[:words].strip() else len(shared)


def _history(row: Row, shared: list[Turn]) -> Any:
    """Combine the prompt field with the turns that chosen and rejected share; many files repeat the prompt there."""
    if row.get("prompt") is None:
        if not shared:
            raise DataError("is missing, and chosen and rejected share no turn", field="prompt", hint="add the field")
        return shared
    prompt = conversation(row["prompt"], "prompt")
    if not shared:
        return prompt
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if given[-len(shared) :] == shared:
        return given
    return shared if all(turn in shared for turn in given) else given + shared


def _with_system(prompt: Any, row: Row) -> tuple[Any, tuple[str, ...]]:
    """Put the text of the column `system` before the prompt, unless the prompt has a system message of its own."""
    if not row.get("system"):
        return prompt, ()
    system = {"role": "system", "content": text_in(row, "system")}
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if turns[0]["role"] != "system":
        return [system, *turns], ()
    if turns[0] == system:
        return turns, ()
    return turns, ("the column system differs from the prompt's system message; the message was kept",)


_ORCA_NAMES = {
    "chosen_response": "chosen",
    "rejected_response": "rejected",
    "chosen_score": "score_chosen",
    "rejected_score": "score_rejected",
    "chosen_avg_rating": "score_chosen",
    "rejected_avg_rating": "score_rejected",
}
_QUESTIONS = ("question", "instruction", "input")


def _orca(row: Row) -> RawExample:
    """Read a row with its prompt in `question` (Intel), `input` (Argilla), or `instruction` and `input` (Alpaca)."""
    renamed = {_ORCA_NAMES.get(name, name): value for name, value in row.items() if value is not None}
    parts = [text_in(row, name) for name in _QUESTIONS if row.get(name)]
    if not parts:
        raise DataError("is missing", field="question", hint=f"give one of {', '.join(_QUESTIONS)}")
    return _trl(renamed | {"prompt": "\n".join(parts)})


def _is_orca(row: Row) -> bool:
    sides = {"chosen", "rejected"} <= row.keys() or {"chosen_response", "rejected_response"} <= row.keys()
    return sides and "prompt" not in row and any(name in row for name in _QUESTIONS)


def _sharegpt(row: Row) -> RawExample:
    return _trl({**row, "prompt": messages(need(row, "conversations"), "conversations")})


def _rewardbench(row: Row) -> RawExample:
    """Read a row of RewardBench 1 (one chosen, one rejected), RewardBench 2 or RM-Bench (lists of both)."""
    chosen, rejected = (
        [row[side]] if isinstance(row.get(side), str) else texts_in(row, side) for side in ("chosen", "rejected")
    )
    fields = {"responses": chosen + rejected, "ranks": [1] * len(chosen) + [2] * len(rejected)}
    tasks = [as_name(as_text(row[name], name)) for name in ("domain", "subset") if row.get(name) is not None]
    return RawExample(fields | ({"task": tasks[-1]} if tasks else {}))


def _is_rewardbench(row: Row) -> bool:
    chosen: Any = row["chosen"]
    if isinstance(chosen, str):
        return "subset" in row
    return isinstance(chosen, list | tuple) and bool(chosen) and isinstance(chosen[0], str)


# --- transcripts: "\n\nHuman: …\n\nAssistant: …" -------------------------------------------------------------------

_TURN = re.compile(r"\n\n(Human|Assistant):")


def _is_transcript(text: object) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _transcript(text: str, field: str) -> list[Turn]:
    before, *parts = _TURN.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        hint = 'begin it with "\\n\\nHuman: "'
        raise DataError("is not a transcript", field=field, value=text, hint=hint)
    speakers = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": speakers[speaker], "content": content.strip()} for speaker, content in turns]


def _hh(row: Row) -> RawExample:
    """Read an hh-rlhf row: two transcripts that differ only in the assistant's last turn."""
    sides = [_transcript(text_in(row, field), field) for field in ("chosen", "rejected")]
    if any(side[-1]["role"] != "assistant" for side in sides):
        raise SkippedRow("a transcript does not end with the assistant's turn", field="chosen")
    if sides[0][:-1] != sides[1][:-1]:
        raise SkippedRow("chosen and rejected do not answer the same prompt", field="chosen")
    labels, notes = _choice_labels(row)
    return RawExample({"prompt": sides[0][:-1], "responses": [side[-1]["content"] for side in sides]} | labels, notes)


def _nectar_prompt(value: Any, field: str) -> Any:
    prompt = conversation(value, field)
    if not _is_transcript(prompt):
        return prompt
    turns = _transcript(prompt, field)
    return turns if turns[-1]["role"] == "user" else turns[:-1]


def _is_nectar(row: Row) -> bool:
    answers: Any = row["answers"]
    first = answers[0] if isinstance(answers, list) and answers else None
    return isinstance(first, dict) and "rank" in first


# --- votes ---------------------------------------------------------------------------------------------------------

_WINNERS = re.compile(r"(?:(?:model|response|answer|assistant|output)[ _-]?)?([ab])", re.IGNORECASE)
_TIES = {"tie", "draw", "equal", "both", "tie (bothbad)", "bothbad", "both_bad"}
_ONE_HOT = {"winner_model_a": [1, 2], "winner_model_b": [2, 1], "winner_tie": [1, 1]}


def _winner(row: Row) -> tuple[list[int], tuple[str, ...]]:
    """Return the ranks that the column `winner` gives, and notes.

    Numbers are refused, since some files count from 0 and others from 1.
    """
    text = str(need(row, "winner")).strip()
    if match := _WINNERS.fullmatch(text):
        return ([1, 2] if match[1].lower() == "a" else [2, 1]), ()
    if text.lower() not in _TIES:
        raise DataError("is not a winner", field="winner", value=row["winner"], hint="write a, b or tie")
    return [1, 1], (("both responses are bad: taken as a tie",) if "bad" in text.lower() else ())


def _votes(row: Row) -> RawExample:
    """Read two responses and `winner` (a, b or tie), or a row of lmarena-ai/arena-human-preference-55k.

    In the Arena's rows, prompt and responses are lists of turns, and `winner_model_a`, … are 0 or 1.
    """
    if "winner" in row:
        prompt = conversation(need(row, "prompt"), "prompt")
        ranks, notes = _winner(row)
        responses = [text_in(row, "response_a"), text_in(row, "response_b")]
        return RawExample({"prompt": prompt, "responses": responses, "ranks": ranks}, notes)
    questions, *answers = (_vote_turns(row, name) for name in ("prompt", "response_a", "response_b"))
    padded = [side + [""] * (len(questions) - len(side)) for side in answers]
    prompt, responses = last_answers(*(alternate(questions, side) for side in padded))
    chosen = [ranks for name, ranks in _ONE_HOT.items() if str(row.get(name)) in ("1", "True", "true")]
    if len(chosen) != 1:
        value = {name: row.get(name) for name in _ONE_HOT}
        raise DataError("exactly one must be 1", field="winner_model_a", value=value, hint="correct the row")
    whole = prompt[0]["content"] if len(prompt) == 1 else prompt
    return RawExample({"prompt": whole, "responses": responses, "ranks": chosen[0]})


def _vote_turns(row: Row, field: str) -> list[str]:
    """Return the turns of a field: a list, a list written as JSON, or one text. A null turn is empty."""
    value = parsed(need(row, field))
    turns = list(value) if isinstance(value, list | tuple) else [value]
    return [as_text("" if turn is None else turn, field) for turn in turns]


def _arena(row: Row) -> RawExample:
    """Read a row of lmsys/chatbot_arena_conversations or lmarena-ai/arena-human-preference-100k and -140k.

    A vote on conversations that differ before their last answers is left out, since no single answer explains it.
    """
    sides = [messages(need(row, field), field) for field in ("conversation_a", "conversation_b")]
    prompt, responses = last_answers(*sides)
    ranks, notes = _winner(row)
    identity = {"id": row["question_id"]} if isinstance(row.get("question_id"), str) else {}
    return RawExample(identity | {"prompt": prompt, "responses": responses, "ranks": ranks}, notes)


FORMATS = (
    Format(
        "trl",
        needs={"chosen", "rejected"},
        compute=_trl,
        also=_CHOICE | {"prompt", "system"},
        order=2,
        handwritten=True,
        unsuggested={"tools"},
    ),
    Format("orca", compute=_orca, also=_CHOICE | {"system", *_QUESTIONS, *_ORCA_NAMES}, looks=_is_orca),
    Format("sharegpt", {"conversations", "chosen", "rejected"}, compute=_sharegpt, also=_CHOICE | {"system"}),
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
    Format("arena", {"conversation_a", "conversation_b", "winner"}, compute=_arena, also={"question_id"}),
    Format(
        "votes",
        needs={"prompt", "response_a", "response_b"},
        compute=_votes,
        also={"winner", *_ONE_HOT},
        looks=lambda row: "winner" in row or _ONE_HOT.keys() <= row.keys(),
    ),
)
