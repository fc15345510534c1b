"""KTO: one completion a row, with whether it is good."""

from __future__ import annotations

from typing import Any

from ...errors import DataError
from ..messages import answer_text, messages, prompt_in
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, need, origin

_LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}


def read_kto(row: Row) -> RawExample:
    """Read a row of TRL's unpaired preferences: good completions have the score 1, bad ones 0.

    The rows of one prompt are joined into a group.
    """
    fields = {"prompt": prompt_in(row, "prompt"), "responses": [_completion(need(row, "completion"))]}
    return RawExample(origin(row) | fields | {"scores": [_score(need(row, "label"))], "capabilities": {}})


def _completion(value: Any) -> str:
    """Return the completion, which may be the assistant's only message."""
    if isinstance(value, str):
        return value
    turns = messages(value, "completion")
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        hint = "give a text, or one message of the assistant"
        raise DataError("must be one answer", field="completion", value=value, hint=hint)
    return answer_text(turns[0])


def _score(label: Any) -> float:
    score = _LABELS.get(str(label).strip().lower())
    if score is None:
        raise DataError("must be true or false", field="label", value=label, hint="true: the completion is good")
    return score


FORMAT = RowFormat(
    "kto",
    has("prompt", "completion", "label"),
    read_kto,
    ORIGIN | {"prompt", "completion", "label"},
    one_response=True,
)
