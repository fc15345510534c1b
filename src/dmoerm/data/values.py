"""Read single values of a row: texts, numbers, grades and conversations as they are published.

A function raises `DataError` with the field, the value and a hint if the value has another form.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import DataError, first_fault
from ..message import Message

Row = Mapping[str, Any]
_adapter = cache(TypeAdapter)


class SkippedRow(DataError):
    """A well-formed row without a usable preference: it is counted under its `message` and is not an error."""


def checked(value: Any, field: str, kind: Any = str, hint: str = "correct the value") -> Any:
    """Return the value of a field, which must have a type such as `str` or `list[str]`."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        fault = first_fault(error)
    raise DataError(fault.message, field=".".join(filter(None, [field, fault.field])), value=fault.value, hint=hint)


def need(row: Row, field: str, kind: Any = str) -> Any:
    """Return the value of a field, which must be present and have this type."""
    if row.get(field) is None:
        hint = "give the field a value, or name the format of the rows"
        raise DataError("is missing", field=field, hint=hint)
    return checked(row[field], field, kind)


def number(value: Any, field: str) -> float:
    """Return the value as a finite number; numbers written as text are accepted."""
    try:
        result = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise DataError("must be a finite number", field=field, value=value, hint="correct the value")
    return result


def grade(value: Any, field: str) -> float | None:
    """Return the value as a grade: a finite number, or None for null, an empty text and "N/A"."""
    missing = value is None or (isinstance(value, str) and value in ("", "N/A", "n/a", "NA"))
    return None if missing else number(value, field)


def as_name(label: Any, field: str = "task") -> str:
    """Return a data set's own label as a plain task name: "Precise IF" → "precise_if"."""
    name = re.sub(r"[^a-z0-9_-]+", "_", checked(label, field).lower())
    return name.strip("_-")[:64].strip("_-") or "unnamed"


def parsed(value: Any) -> Any:
    """Return the array or object that a text holds as JSON, as in a cell of a CSV file; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


# --- conversations -------------------------------------------------------------------------------------------------

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
_CALL_HINT = 'write a call as {"type": "function", "function": {"name": "…", "arguments": "{…}"}}'


def conversation(value: Any, field: str) -> str | list[Message]:
    """Return a prompt: a text, or a conversation as a list of messages."""
    return value if isinstance(value, str) else messages(value, field)


def messages(value: Any, field: str) -> list[Message]:
    """Return a conversation as a list of messages; keys that `Message` does not have are dropped.

    Args:
        value: messages ({"role", "content"}) or ShareGPT's turns ({"from", "value"}); the list may be written as JSON.

    Raises:
        SkippedRow: a message has an image or another part that is not text.
    """
    value = parsed(value)
    if not isinstance(value, list | tuple) or not value:
        raise DataError("must be a list of messages", field=field, value=value, hint='give [{"role", "content"}, …]')
    return [_message(turn, f"{field}.{index}") for index, turn in enumerate(value)]


def _message(turn: Any, field: str) -> Message:
    if isinstance(turn, Message):
        return turn
    turn = checked(turn, field, dict, hint='give {"role": "user", "content": "…"}')
    speaker, text = ("role", "content") if "role" in turn else ("from", "value")
    role, content, path = turn.get(speaker), turn.get(text), f"{field}.{text}"
    if not isinstance(role, str) or role not in _ROLES:
        hint = f"use one of {', '.join(_ROLES)}"
        raise DataError("is not a valid role", field=f"{field}.role", value=role, hint=hint)
    if isinstance(content, list | tuple):  # parts: [{"type": "text", "text": "…"}, …]
        for part in content:
            if not isinstance(part, Mapping) or part.get("text") is None:
                raise SkippedRow("a message has a part that is not text", field=path, value=part)
        content = "".join(checked(part["text"], f"{path}.text") for part in content)
    calls = _without_nulls(turn.get("tool_calls"))
    if role == "function_call":  # one or several {"name", "arguments"}
        named = parsed(content)
        named, content = named if isinstance(named, list) else [named], None
        if not named or not all(isinstance(call, Mapping) for call in named):
            hint = 'write {"name": "…", "arguments": {…}}'
            raise DataError("is not a tool call", field=path, value=turn.get(text), hint=hint)
        calls = [{"function": call} for call in named]
    elif not calls:
        content = checked(content, path, hint="give the message a text")
    fields = {"role": _ROLES[role], "content": content, "tool_calls": calls or None}
    if _ROLES[role] == "tool":
        fields |= {name: turn.get(name) for name in ("tool_call_id", "name")}
    return checked(fields, field, Message, _CALL_HINT)


def _without_nulls(value: Any) -> Any:
    """Drop the null entries of calls: Parquet gives the arguments of all calls in a file to each one."""
    if isinstance(value, list | tuple):
        return [_without_nulls(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    return {name: _without_nulls(entry) for name, entry in value.items() if entry is not None}


def alternate(questions: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Return turns of user and assistant; there may be one question more than answers, and a shorter side is padded."""
    turns: list[Message] = []
    for question, answer in itertools.zip_longest(questions, answers):
        turns.append(Message(role="user", content=question or ""))
        turns += [] if answer is None else [Message(role="assistant", content=answer)]
    return turns


def last_answers(first: Sequence[Message], second: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Split two conversations into the turns that they share and one last answer each.

    Raises:
        SkippedRow: they differ in more than one last answer.
    """
    longest = min(len(first), len(second)) - 1
    shared = next((i for i in range(longest) if first[i] != second[i]), longest)
    tails = [side[shared:] for side in (first, second)]
    if any(len(tail) != 1 or tail[0].role != "assistant" for tail in tails):
        raise SkippedRow("chosen and rejected differ in more than one last answer", field="chosen")
    return list(first[:shared]), [tail[0].text for tail in tails]
