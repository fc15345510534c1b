"""Chatbot Arena: two conversations and the voter's winner."""

from __future__ import annotations

from ..messages import last_answers, messages
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, need, origin
from .votes import winner


def read_arena(row: Row) -> RawExample:
    """Read a row of lmsys/chatbot_arena_conversations or lmarena-ai/arena-human-preference-100k and -140k.

    `winner` is model_a, model_b, tie, tie (bothbad) or both_bad. A vote on conversations that differ before their last
    answers is left out, since no single answer explains it.
    """
    sides = [messages(need(row, field), field) for field in ("conversation_a", "conversation_b")]
    prompt, responses = last_answers(*sides)
    ranks, notes = winner(row)
    fields = origin(row) | {"prompt": prompt, "responses": responses, "ranks": ranks}
    if isinstance(row.get("question_id"), str):
        fields["id"] = row["question_id"]
    return RawExample(fields, notes)


FORMAT = RowFormat(
    "arena",
    has("conversation_a", "conversation_b", "winner"),
    read_arena,
    ORIGIN | {"question_id", "conversation_a", "conversation_b", "winner"},
)
