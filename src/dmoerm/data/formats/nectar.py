"""Nectar: a prompt and answers with ranks."""

from __future__ import annotations

from typing import Any

from ..messages import prompt_in
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, as_text, has, list_in, mapping, need, number, origin
from .hh import is_transcript, transcript


def read_nectar(row: Row) -> RawExample:
    """Read a Nectar row: `answers` with `rank`, 1 is best. A prompt in the form of a transcript is split into turns."""
    answers = [mapping(entry, f"answers.{i}") for i, entry in enumerate(list_in(row, "answers"))]
    fields = origin(row) | {
        "prompt": _prompt(row),
        "responses": [as_text(need(entry, "answer"), f"answers.{i}.answer") for i, entry in enumerate(answers)],
        "ranks": [number(need(entry, "rank"), f"answers.{i}.rank") for i, entry in enumerate(answers)],
    }
    return RawExample(fields)


def _prompt(row: Row) -> Any:
    prompt = prompt_in(row, "prompt")
    if not is_transcript(prompt):
        return prompt
    turns = transcript(prompt, "prompt")
    return turns if turns[-1]["role"] == "user" else turns[:-1]


def _is_nectar(row: Row) -> bool:
    answers: Any = row.get("answers")
    first = answers[0] if isinstance(answers, list) and answers else None
    return has("prompt", "answers")(row) and isinstance(first, dict) and "rank" in first


FORMAT = RowFormat("nectar", _is_nectar, read_nectar, ORIGIN | {"prompt", "answers"})
