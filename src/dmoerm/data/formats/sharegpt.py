"""ShareGPT's preference rows: a conversation, and a chosen and a rejected next turn."""

from __future__ import annotations

from ..messages import messages
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, need
from .trl import CHOICE, read_trl


def read_sharegpt(row: Row) -> RawExample:
    """Read a row of `conversations` (turns of `from` and `value`), `chosen` and `rejected` (one turn, or a text)."""
    return read_trl(dict(row) | {"prompt": messages(need(row, "conversations"), "conversations")})


FORMAT = RowFormat(
    "sharegpt",
    has("conversations", "chosen", "rejected"),
    read_sharegpt,
    ORIGIN | CHOICE | {"conversations", "system"},
)
