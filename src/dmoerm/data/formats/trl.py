"""TRL's preference rows: a chosen and a rejected response, as text or as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from ..messages import last_answers, messages, prompt_in
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, need, number, origin, text_in

CHOICE = frozenset({"chosen", "rejected", "margin", "score_chosen", "score_rejected"})
"""The columns of a choice between two responses."""


def read_trl(row: Row) -> RawExample:
    """Read a TRL preference row, standard or conversational, with an explicit or implicit prompt.

    An implicit prompt is the shared beginning of chosen and rejected: whole messages, or whole words of a text.
    A text in `system` becomes the system message. `score_chosen` and `score_rejected` become scores (equal: a tie)
    unless they contradict the choice.
    """
    chosen, rejected = need(row, "chosen"), need(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, responses = _text_parts(row, chosen, rejected)
    else:
        prompt, responses = _conversation_parts(row)
    labels, notes = choice_labels(row)
    prompt, system_notes = _with_system(prompt, row)
    return RawExample(origin(row) | {"prompt": prompt, "responses": responses} | labels, notes + system_notes)


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


def _text_parts(row: Row, chosen: str, rejected: str) -> tuple[Any, list[str]]:
    if "prompt" in row:  # an empty cell is missing: its prompt is not the beginning that the texts may share
        return prompt_in(row, "prompt"), [chosen, rejected]
    end = _shared_words(chosen, rejected)
    if not chosen[:end].strip():
        hint = "give the prompt in a field of its own"
        raise DataError("is missing, and chosen and rejected share no beginning", field="prompt", hint=hint)
    return chosen[:end].strip(), [chosen[end:], rejected[end:]]


def _shared_words(first: str, second: str) -> int:
    """Return the length of the shared beginning up to the end of a word, or of all shared characters without spaces."""
    end = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    shared = first[:end]
    words = len(shared)
    while words and not shared[words - 1].isspace():
        words -= 1
    return words if shared[:words].strip() else len(shared)


def _conversation_parts(row: Row) -> tuple[Any, list[str]]:
    sides = [_turns(need(row, field), field) for field in ("chosen", "rejected")]
    shared, responses = last_answers(*sides)
    return _history(row, shared), responses


def _turns(side: Any, field: str) -> list[dict[str, str]]:
    """Return a side's turns; a single one, as in ShareGPT's rows, may stand without a list."""
    return messages([side] if isinstance(side, Mapping) else side, field)


def _history(row: Row, shared: list[dict[str, str]]) -> Any:
    """Combine the prompt field with the turns that chosen and rejected share; many files repeat the prompt there."""
    if row.get("prompt") is None:
        if not shared:
            raise DataError("is missing, and chosen and rejected share no turn", field="prompt", hint="add the field")
        return shared
    prompt = prompt_in(row, "prompt")
    if not shared:
        return prompt
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if given[-len(shared) :] == shared:
        return given
    return shared if all(turn in shared for turn in given) else given + shared


def choice_labels(row: Row) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the labels of a choice, and notes. Scores replace the ranks unless they contradict the choice."""
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


FORMAT = RowFormat(
    "trl",
    has("chosen", "rejected"),
    read_trl,
    ORIGIN | CHOICE | {"prompt", "system"},
    order=2,
    handwritten=True,
    unsuggested=frozenset({"tools"}),
)
