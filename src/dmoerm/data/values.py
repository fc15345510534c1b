"""Read single values of a row: texts, numbers, grades and conversations as they are published.

A function raises `DataError` with the field, the value and a hint if the value has another form.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..errors import DataError, first_fault
from ..message import Message

Row = Mapping[str, Any]
Turn = dict[str, Any]
"""A message as plain values, with the fields of `Message` that it has."""


class SkippedRow(DataError):
    """A well-formed row without a usable preference: it is counted under its `message` and is not an error."""


# --- single values -------------------------------------------------------------------------------------------------


def need(row: Row, field: str) -> Any:
    """Return the value of a field. Raise `DataError` if it is missing or null."""
    value = row.get(field)
    if value is None:
        raise DataError("is missing", field=field, hint="give the field a value, or name the format of the rows")
    return value


def as_text(value: Any, field: str) -> str:
    """Return the value, which must be a text."""
    if not isinstance(value, str):
        raise DataError("must be a text", field=field, value=value, hint="write a JSON string")
    return value


def text_in(row: Row, field: str) -> str:
    """Return the value of a field, which must be a text."""
    return as_text(need(row, field), field)


def list_in(row: Row, field: str) -> list[Any]:
    """Return the value of a field, which must be a list."""
    value = need(row, field)
    if not isinstance(value, list | tuple):
        raise DataError("must be a list", field=field, value=value, hint="write a JSON array")
    return list(value)


def texts_in(row: Row, field: str) -> list[str]:
    """Return the value of a field, which must be a list of texts."""
    return [as_text(text, f"{field}.{index}") for index, text in enumerate(list_in(row, field))]


def mapping(value: Any, field: str) -> Row:
    """Return the value, which must be an object."""
    if not isinstance(value, Mapping):
        raise DataError("must be an object", field=field, value=value, hint="write a JSON object")
    return value


def mappings_in(row: Row, field: str) -> list[Row]:
    """Return the value of a field, which must be a list of objects."""
    return [mapping(entry, f"{field}.{index}") for index, entry in enumerate(list_in(row, field))]


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


def as_name(label: str) -> str:
    """Return a data set's own label as a plain task name: "Precise IF" → "precise_if"."""
    return re.sub(r"[^a-z0-9_-]+", "_", label.lower()).strip("_-")[:64].strip("_-") or "unnamed"


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


def conversation(value: Any, field: str) -> Any:
    """Return a prompt: a text, or a conversation as a list of turns."""
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


def alternate(questions: Sequence[str], answers: Sequence[str]) -> list[Turn]:
    """Return turns of user and assistant; there may be one question more than answers, and a shorter side is padded."""
    turns: list[Turn] = []
    for question, answer in itertools.zip_longest(questions, answers):
        turns.append({"role": "user", "content": question or ""})
        turns += [] if answer is None else [{"role": "assistant", "content": answer}]
    return turns


def answer_text(turn: Turn) -> str:
    """Return the assistant's answer as a response: its content, followed by its tool calls as text."""
    return Message.model_validate(turn).text if "tool_calls" in turn else turn["content"]


def last_answers(first: Sequence[Turn], second: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
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


def _message(turn: Any, field: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise DataError("must be a message", field=field, value=turn, hint='give {"role": "user", "content": "…"}')
    speaker, text = ("role", "content") if "role" in turn else ("from", "value")
    role, value = turn.get(speaker), turn.get(text)
    if not isinstance(role, str) or role not in _ROLES:
        hint = f"use one of {', '.join(_ROLES)}"
        raise DataError("is not a valid role", field=f"{field}.role", value=role, hint=hint)
    path = f"{field}.{text}"
    if role == "function_call":
        return _turn({"role": "assistant", "content": None, "tool_calls": _calls(value, path)}, field)
    if turn.get("tool_calls"):
        content = "" if value is None else _content(value, path)
        calls = _without_nulls(turn["tool_calls"])
        return _turn({"role": _ROLES[role], "content": content, "tool_calls": calls}, field)
    plain: Turn = {"role": _ROLES[role], "content": _content(value, path)}
    if role != "tool":
        return plain
    return _turn(plain | {name: turn.get(name) for name in ("tool_call_id", "name")}, field)


def _turn(fields: Turn, field: str) -> Turn:
    """Return a turn with tools in one spelling, so that equal turns of two conversations compare equal."""
    try:
        return Message.model_validate(fields).model_dump(mode="json")
    except ValidationError as error:
        fault = first_fault(error)
        location = ".".join(filter(None, [field, fault.field]))
        hint = 'write a call as {"type": "function", "function": {"name": "…", "arguments": "{…}"}}'
        raise DataError(fault.message, field=location, value=fault.value, hint=hint) from None


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


# --- native fields -------------------------------------------------------------------------------------------------

ORIGIN = frozenset({"id", "prompt_id", "task", "source", "tools"})
"""The columns that `origin` reads."""


def origin(row: Row) -> dict[str, Any]:
    """Return the native fields `id`, `task`, `source` and `tools` that a row of another format has."""
    names = [name for name in ("id", "prompt_id") if isinstance(row.get(name), str | int)]
    fields = {"id": str(row[names[0]])} if names else {}
    fields |= {name: row[name] for name in ("task", "source") if isinstance(row.get(name), str) and row[name]}
    return fields | ({"tools": row["tools"]} if row.get("tools") else {})


def keep_responses(fields: Row, kept: Sequence[int]) -> dict[str, Any]:
    """Return native fields with only the responses at the indices `kept`, and their labels."""
    result = dict(fields)
    for name in ("responses", "scores", "ranks"):
        if result.get(name) is not None:
            result[name] = [result[name][index] for index in kept]
    for name in ("capabilities", "annotators"):
        if result.get(name):
            result[name] = {label: [grades[i] for i in kept] for label, grades in result[name].items()}
    return result
