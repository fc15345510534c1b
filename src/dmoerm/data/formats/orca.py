"""A chosen and a rejected response to a question: Intel's Orca pairs, Argilla's pairs, and Alpaca's columns."""

from __future__ import annotations

from ...errors import DataError
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, text_in
from .trl import CHOICE, read_trl

_NAMES = {
    "chosen_response": "chosen",
    "rejected_response": "rejected",
    "chosen_score": "score_chosen",
    "rejected_score": "score_rejected",
    "chosen_avg_rating": "score_chosen",
    "rejected_avg_rating": "score_rejected",
}
_QUESTIONS = ("question", "instruction", "input")


def read_orca(row: Row) -> RawExample:
    """Read a row whose prompt is in `question` (Intel), `input` (Argilla), or `instruction` and `input` (Alpaca).

    `system`, the sides and their scores are read as in the format `trl`.
    """
    renamed = {_NAMES.get(name, name): value for name, value in row.items() if value is not None}
    parts = [text_in(row, name) for name in _QUESTIONS if row.get(name)]
    if not parts:
        raise DataError("is missing", field="question", hint=f"give one of {', '.join(_QUESTIONS)}")
    return read_trl(renamed | {"prompt": "\n".join(parts)})


def _is_orca(row: Row) -> bool:
    sides = has("chosen", "rejected")(row) or has("chosen_response", "rejected_response")(row)
    return sides and "prompt" not in row and any(name in row for name in _QUESTIONS)


FORMAT = RowFormat("orca", _is_orca, read_orca, ORIGIN | CHOICE | {"system", *_QUESTIONS, *_NAMES})
