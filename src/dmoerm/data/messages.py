"""Read conversations as they are published: OpenAI's messages with tool calls and content parts, ShareGPT's turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..errors import DataError, plain_fault
from ..message import Message
from .raw_example import Row, SkippedRow, as_text, need

Turn = dict[str, Any]
"""A message as plain values, with the fields of `Message` that it has."""

_ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",  # ShareGPT's turns with tools, as LLaMA-Factory reads them: the call as JSON
    "tool": "tool",
    "observation": "tool",
}


def prompt_in(row: Row, field: str) -> Any:
    """Return a field that is a text or a conversation."""
    value = need(row, field)
    return value if isinstance(value, str) else messages(value, field)


def messages(value: Any, field: str) -> list[Turn]:
    """Return a conversation as a list of turns; keys that `Message` does not have are dropped.

    Args:
        value: messages ({"role", "content"}) or ShareGPT's turns ({"from", "value"}); the list may be written as JSON.

    Raises:
        SkippedRow: a message has an image or another part that is not text.
    """
    value = parsed(value)
    if not isinstance(value, list | tuple) or not value:
        raise DataError("must be a list of messages", field=field, value=value, hint='give [{"role", "content"}, …]')
    return [_message(turn, f"{field}.{index}") for index, turn in enumerate(value)]


def answer_text(turn: Turn) -> str:
    """Return the assistant's answer as a response: its content, followed by its tool calls as text."""
    return Message.model_validate(turn).text if "tool_calls" in turn else turn["content"]


def last_answers(first: Sequence[Turn], second: Sequence[Turn]) -> tuple[Any, list[str]]:
    """Split two conversations into the turns that they share and one last answer each.

    Raises:
        SkippedRow: they differ in more than one last answer.
    """
    longest = min(len(first), len(second)) - 1
    shared = next((i for i in range(longest) if first[i] != second[i]), longest)
    tails = [side[shared:] for side in (first, second)]
    if any(len(tail) != 1 or tail[0]["role"] != "assistant" for tail in tails):
        raise SkippedRow("chosen and rejected differ in more than one last answer", field="chosen")
    return list(first[:shared]), [answer_text(tail[0]) for tail in tails]


def parsed(value: Any) -> Any:
    """Return the array or object that a text holds as JSON, as in a cell of a CSV file; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _message(turn: Any, field: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise DataError("must be a message", field=field, value=turn, hint='give {"role": "user", "content": "…"}')
    speaker, text = ("role", "content") if "role" in turn else ("from", "value")
    role = turn.get(speaker)
    if not isinstance(role, str) or role not in _ROLES:
        hint = f"use one of {', '.join(_ROLES)}"
        raise DataError("is not a valid role", field=f"{field}.role", value=role, hint=hint)
    value = turn.get(text)
    if role == "function_call":
        return _turn({"role": "assistant", "content": None, "tool_calls": _calls(value, f"{field}.{text}")}, field)
    if turn.get("tool_calls"):
        calls = _without_nulls(turn["tool_calls"])
        content = "" if value is None else _content(value, f"{field}.{text}")
        return _turn({"role": _ROLES[role], "content": content, "tool_calls": calls}, field)
    plain: Turn = {"role": _ROLES[role], "content": _content(value, f"{field}.{text}")}
    if role != "tool":
        return plain
    return _turn(plain | {name: turn.get(name) for name in ("tool_call_id", "name")}, field)


def _turn(fields: Turn, field: str) -> Turn:
    """Return a turn with tools in one spelling, so that equal turns of two conversations compare equal."""
    try:
        return Message.model_validate(fields).model_dump(mode="json")
    except ValidationError as error:
        fault = error.errors()[0]
        location = ".".join([field, *map(str, fault["loc"])])
        hint = 'write a call as {"type": "function", "function": {"name": "…", "arguments": "{…}"}}'
        raise DataError(plain_fault(fault), field=location, value=fault["input"], hint=hint) from None


def _calls(value: Any, field: str) -> list[Turn]:
    """Return the calls of ShareGPT's turn `function_call`: one or several {"name", "arguments"} as JSON."""
    calls = parsed(value)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, Mapping) for call in calls):
        hint = 'write {"name": "…", "arguments": {…}}'
        raise DataError("is not a tool call", field=field, value=value, hint=hint)
    return [{"function": call} for call in calls]


def _without_nulls(value: Any) -> Any:
    """Drop the null entries of calls: Parquet gives the arguments of all calls in a file to each one."""
    if isinstance(value, list | tuple):
        return [_without_nulls(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    return {name: _without_nulls(entry) for name, entry in value.items() if entry is not None}


def _content(value: Any, field: str) -> str:
    """Return a message's text, which may be in parts: [{"type": "text", "text": "…"}, …]."""
    if not isinstance(value, list | tuple):
        return as_text(value, field)
    for part in value:
        if not isinstance(part, Mapping) or part.get("text") is None:
            raise SkippedRow("a message has a part that is not text", field=field, value=part)
    return "".join(as_text(part["text"], f"{field}.text") for part in value)
