"""Read conversations as they are published: OpenAI's messages, text as content parts, and ShareGPT's turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from .raw_example import Row, SkippedRow, as_text, need

_ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}


def prompt_in(row: Row, field: str) -> Any:
    """Return a field that is a text or a conversation."""
    value = need(row, field)
    return value if isinstance(value, str) else messages(value, field)


def messages(value: Any, field: str) -> list[dict[str, str]]:
    """Return a conversation as a list of {"role", "content"}; other keys are dropped.

    Args:
        value: messages ({"role", "content"}) or ShareGPT's turns ({"from", "value"}); the list may be written as JSON.

    Raises:
        SkippedRow: a message has an image or another part that is not text.
    """
    value = parsed(value)
    if not isinstance(value, list | tuple) or not value:
        raise DataError("must be a list of messages", field=field, value=value, hint='give [{"role", "content"}, …]')
    return [_message(turn, f"{field}.{index}") for index, turn in enumerate(value)]


def last_answers(first: Sequence[dict[str, str]], second: Sequence[dict[str, str]]) -> tuple[Any, list[str]]:
    """Split two conversations into the turns that they share and one last answer each.

    Raises:
        SkippedRow: they differ in more than one last answer.
    """
    longest = min(len(first), len(second)) - 1
    shared = next((i for i in range(longest) if first[i] != second[i]), longest)
    tails = [side[shared:] for side in (first, second)]
    if any(len(tail) != 1 or tail[0]["role"] != "assistant" for tail in tails):
        raise SkippedRow("chosen and rejected differ in more than one last answer", field="chosen")
    return list(first[:shared]), [tail[0]["content"] for tail in tails]


def parsed(value: Any) -> Any:
    """Return the array or object that a text holds as JSON, as in a cell of a CSV file; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _message(turn: Any, field: str) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise DataError("must be a message", field=field, value=turn, hint='give {"role": "user", "content": "…"}')
    speaker, text = ("role", "content") if "role" in turn else ("from", "value")
    role = turn.get(speaker)
    if not isinstance(role, str) or role not in _ROLES:
        hint = f"use one of {', '.join(_ROLES)}"
        raise DataError("is not a valid role", field=f"{field}.role", value=role, hint=hint)
    return {"role": _ROLES[role], "content": _content(turn.get(text), f"{field}.{text}")}


def _content(value: Any, field: str) -> str:
    """Return a message's text, which may be in parts: [{"type": "text", "text": "…"}, …]."""
    if not isinstance(value, list | tuple):
        return as_text(value, field)
    for part in value:
        if not isinstance(part, Mapping) or part.get("text") is None:
            raise SkippedRow("a message has a part that is not text", field=field, value=part)
    return "".join(as_text(part["text"], f"{field}.text") for part in value)
