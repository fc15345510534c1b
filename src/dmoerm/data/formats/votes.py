"""Two responses to a prompt and the winner, and the votes of lmarena-ai/arena-human-preference-55k."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

from ...errors import DataError
from ..messages import last_answers, parsed, prompt_in
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, need, origin, text_in

BOTH_BAD = "both responses are bad: taken as a tie"
_WINNERS = re.compile(r"(?:(?:model|response|answer|assistant|output)[ _-]?)?([ab])", re.IGNORECASE)
_TIES = {"tie", "draw", "equal", "both", "tie (bothbad)", "bothbad", "both_bad"}
_ONE_HOT = {"winner_model_a": [1, 2], "winner_model_b": [2, 1], "winner_tie": [1, 1]}


def read_votes(row: Row) -> RawExample:
    """Read a row of two responses and `winner` (a, b or tie), or of the Arena's columns `winner_model_a`, ….

    In the Arena's rows, prompt and responses are lists of turns.
    """
    if "winner" in row:
        prompt, responses = prompt_in(row, "prompt"), [text_in(row, "response_a"), text_in(row, "response_b")]
        ranks, notes = winner(row)
    else:
        prompt, responses = _split_turns(row)
        ranks, notes = _one_hot(row), ()
    return RawExample(origin(row) | {"prompt": prompt, "responses": responses, "ranks": ranks}, notes)


def winner(row: Row) -> tuple[list[int], tuple[str, ...]]:
    """Return the ranks that the column `winner` gives, and notes.

    Numbers are refused, since some files count from 0 and others from 1.
    """
    text = str(need(row, "winner")).strip()
    if match := _WINNERS.fullmatch(text):
        return ([1, 2] if match[1].lower() == "a" else [2, 1]), ()
    if text.lower() not in _TIES:
        raise DataError("is not a winner", field="winner", value=row["winner"], hint="write a, b or tie")
    return [1, 1], ((BOTH_BAD,) if "bad" in text.lower() else ())


def _one_hot(row: Row) -> list[int]:
    chosen = [ranks for name, ranks in _ONE_HOT.items() if str(row.get(name)) in ("1", "True", "true")]
    if len(chosen) != 1:
        value = {name: row.get(name) for name in _ONE_HOT}
        raise DataError("exactly one must be 1", field="winner_model_a", value=value, hint="correct the row")
    return chosen[0]


def _split_turns(row: Row) -> tuple[Any, list[str]]:
    questions, *answers = (_texts(row, name) for name in ("prompt", "response_a", "response_b"))
    prompt, responses = last_answers(*(_alternate(questions, side) for side in answers))
    return (prompt[0]["content"] if len(prompt) == 1 else prompt), responses


def _texts(row: Row, field: str) -> list[str]:
    """Return the turns of a field: a list, a list written as JSON, or one text. A null turn is empty."""
    value = parsed(need(row, field))
    turns = list(value) if isinstance(value, list | tuple) else [value]
    return [text_in({field: "" if turn is None else turn}, field) for turn in turns]


def _alternate(questions: list[str], answers: list[str]) -> list[dict[str, str]]:
    turns = []
    for question, answer in zip_longest(questions, answers, fillvalue=""):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def _is_votes(row: Row) -> bool:
    return has("prompt", "response_a", "response_b")(row) and ("winner" in row or has(*_ONE_HOT)(row))


FORMAT = RowFormat(
    "votes",
    _is_votes,
    read_votes,
    ORIGIN | {"prompt", "response_a", "response_b", "winner", *_ONE_HOT},
)
