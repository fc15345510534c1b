"""Row formats with a chosen and a rejected response: TRL, hh-rlhf, RewardBench 1 and 2, RM-Bench."""

from __future__ import annotations

import re
from typing import Any

from ..errors import DataError
from .raw_example import (
    RawExample,
    Row,
    SkippedRow,
    as_text,
    messages,
    need,
    number,
    origin,
    task_name,
    text_in,
    texts_in,
)

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_NO_SHARED_PROMPT = "chosen and rejected do not answer the same prompt"


def read_trl(row: Row) -> RawExample:
    """Read a TRL preference row, standard or conversational, with an explicit or implicit prompt.

    An implicit prompt is the shared beginning of chosen and rejected: whole messages, or whole words of a text.
    A text in `system` becomes the system message. `score_chosen` and `score_rejected` become scores (equal: a tie)
    unless they contradict the choice.
    """
    chosen, rejected = need(row, "chosen"), need(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, responses = _text_parts(row.get("prompt"), chosen, rejected)
    else:
        prompt, responses = _conversation_parts(row.get("prompt"), chosen, rejected)
    labels, notes = _choice_labels(row)
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


def _text_parts(prompt: Any, chosen: str, rejected: str) -> tuple[Any, list[str]]:
    if prompt is not None:
        return (prompt if isinstance(prompt, str) else messages(prompt, "prompt")), [chosen, rejected]
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


def _conversation_parts(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, list[str]]:
    sides = messages(chosen, "chosen"), messages(rejected, "rejected")
    longest = min(map(len, sides)) - 1
    shared = next((i for i in range(longest) if sides[0][i] != sides[1][i]), longest)
    tails = [side[shared:] for side in sides]
    if any(len(tail) != 1 or tail[0]["role"] != "assistant" for tail in tails):
        raise SkippedRow("chosen and rejected differ in more than one last answer", field="chosen")
    return _history(prompt, sides[0][:shared]), [tail[0]["content"] for tail in tails]


def _history(prompt: Any, shared: list[dict[str, str]]) -> Any:
    """Combine the prompt field with the turns that chosen and rejected share; many files repeat the prompt there."""
    if prompt is None:
        if not shared:
            raise DataError("is missing, and chosen and rejected share no turn", field="prompt", hint="add the field")
        return shared
    if not shared:
        return prompt if isinstance(prompt, str) else messages(prompt, "prompt")
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages(prompt, "prompt")
    if given[-len(shared) :] == shared:
        return given
    return shared if all(turn in shared for turn in given) else given + shared


def _choice_labels(row: Row) -> tuple[dict[str, Any], tuple[str, ...]]:
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


def read_hh(row: Row) -> RawExample:
    """Read an hh-rlhf row: two transcripts that differ only in the assistant's last turn."""
    sides = [_transcript(text_in(row, field), field) for field in ("chosen", "rejected")]
    if any(side[-1]["role"] != "assistant" for side in sides):
        raise SkippedRow("a transcript does not end with the assistant's turn", field="chosen")
    if sides[0][:-1] != sides[1][:-1]:
        raise SkippedRow(_NO_SHARED_PROMPT, field="chosen")
    labels, notes = _choice_labels(row)
    responses = [side[-1]["content"] for side in sides]
    return RawExample(origin(row) | {"prompt": sides[0][:-1], "responses": responses} | labels, notes)


def is_transcript(text: object) -> bool:
    """Return whether the text looks like an hh-rlhf transcript."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _transcript(text: str, field: str) -> list[dict[str, str]]:
    before, *parts = _TURN.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        hint = 'begin it with "\\n\\nHuman: "'
        raise DataError("is not a transcript", field=field, value=text, hint=hint)
    return [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def read_rewardbench(row: Row) -> RawExample:
    """Read a row of RewardBench 1 (one chosen, one rejected), RewardBench 2 or RM-Bench (lists of both).

    All chosen responses share rank 1, all rejected rank 2; `subset` (RM-Bench: `domain`) is the task.
    """
    prompt = need(row, "prompt")
    chosen, rejected = _one_or_more(row, "chosen"), _one_or_more(row, "rejected")
    fields = origin(row)
    for name in ("domain", "subset"):
        if row.get(name) is not None:
            fields["task"] = task_name(as_text(row[name], name))
    fields["prompt"] = prompt if isinstance(prompt, str) else messages(prompt, "prompt")
    fields["responses"] = chosen + rejected
    fields["ranks"] = [1] * len(chosen) + [2] * len(rejected)
    return RawExample(fields)


def _one_or_more(row: Row, field: str) -> list[str]:
    return [row[field]] if isinstance(row.get(field), str) else texts_in(row, field)
