"""hh-rlhf: two transcripts that differ in the assistant's last turn."""

from __future__ import annotations

import re

from ...errors import DataError
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, SkippedRow, origin, text_in
from .trl import CHOICE, choice_labels

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def read_hh(row: Row) -> RawExample:
    """Read an hh-rlhf row: two transcripts that differ only in the assistant's last turn."""
    sides = [transcript(text_in(row, field), field) for field in ("chosen", "rejected")]
    if any(side[-1]["role"] != "assistant" for side in sides):
        raise SkippedRow("a transcript does not end with the assistant's turn", field="chosen")
    if sides[0][:-1] != sides[1][:-1]:
        raise SkippedRow("chosen and rejected do not answer the same prompt", field="chosen")
    labels, notes = choice_labels(row)
    responses = [side[-1]["content"] for side in sides]
    return RawExample(origin(row) | {"prompt": sides[0][:-1], "responses": responses} | labels, notes)


def is_transcript(text: object) -> bool:
    """Return whether the text looks like an hh-rlhf transcript."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def transcript(text: str, field: str) -> list[dict[str, str]]:
    before, *parts = _TURN.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        hint = 'begin it with "\\n\\nHuman: "'
        raise DataError("is not a transcript", field=field, value=text, hint=hint)
    return [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _is_hh(row: Row) -> bool:
    return "prompt" not in row and is_transcript(row.get("chosen")) and is_transcript(row.get("rejected"))


FORMAT = RowFormat("hh", _is_hh, read_hh, ORIGIN | CHOICE)
