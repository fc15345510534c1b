"""Messages of a conversation in OpenAI's format, with the calls and the results of tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_serializer, model_validator

Tool = dict[str, Any]
"""A tool's definition: `{"type": "function", "function": {"name", "description", "parameters"}}`."""


class TextPart(BaseModel):
    """A part of a message in the form of OpenAI's API: `{"type": "text", "text": …}`."""

    type: Literal["text"]
    text: str


def _join_parts(content: Any) -> Any:
    """Return the text of a list of text parts; anything else is returned as it is."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ValueError('must be a text or a list of parts {"type": "text", "text": …}; other parts are not read')
    return "".join(part["text"] for part in content)


def _as_json(arguments: Any) -> Any:
    """Return the arguments of a call as JSON in one spelling; a text that is not a JSON object stays as it is."""
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else arguments
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, Mapping) else arguments


class ToolFunction(BaseModel):
    """The called function's name, and its arguments as JSON (an object is accepted, too)."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str
    arguments: Annotated[str, BeforeValidator(_as_json, json_schema_input_type=str | dict[str, Any])] = "{}"

    def values(self) -> dict[str, Any] | str:
        """Return the arguments as an object, or as their text if they are not valid JSON."""
        try:
            value = json.loads(self.arguments)
        except (ValueError, RecursionError):
            return self.arguments
        return value if isinstance(value, dict) else self.arguments


class ToolCall(BaseModel):
    """A call of a tool by the assistant."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str | None = None
    type: Literal["function"] = "function"
    function: ToolFunction

    @property
    def text(self) -> str:
        """The call as a `<tool_call>` block, the form in which Hermes and Qwen models write it."""
        call = {"name": self.function.name, "arguments": self.function.values()}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


class Message(BaseModel):
    """One turn of a conversation.

    Attributes:
        role: `developer` is read as `system`; `tool` has the result of a call.
        content: a text; text parts are concatenated. It may be null or missing beside tool calls.
        tool_calls: the assistant's calls of tools.
        tool_call_id, name: of a tool's result: the id of its call and the tool's name.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    role: Annotated[
        Literal["system", "user", "assistant", "tool"],
        BeforeValidator(
            lambda role: "system" if role == "developer" else role,
            json_schema_input_type=Literal["system", "developer", "user", "assistant", "tool"],
        ),
    ]
    content: Annotated[str, BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart])]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, message: Any) -> Any:
        """Drop null fields, which OpenAI's API and Parquet write, and a person's name, which templates do not print."""
        if not isinstance(message, Mapping):
            return message
        given = {name: value for name, value in message.items() if value is not None or name in ("role", "content")}
        if given.get("tool_calls") and given.get("content") is None:
            given["content"] = ""
        if given.get("role") != "tool":
            given.pop("name", None)
        return given

    @model_validator(mode="after")
    def _assistant_calls(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls are given for the role {self.role}; only the assistant calls tools")
        return self

    @model_serializer(mode="wrap")
    def _short(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out empty fields, so that turns without tools are written as `role` and `content` alone."""
        return {name: value for name, value in handler(self).items() if value or name in ("role", "content")}

    @property
    def text(self) -> str:
        """The content, followed by the tool calls as text."""
        return "\n".join([self.content] * bool(self.content or not self.tool_calls) + [c.text for c in self.tool_calls])


def check_tools(tools: Any) -> Any:
    """Return tools as a list of OpenAI's definitions: a list, or one written as JSON, also of bare functions.

    Raises:
        ValueError: the value is neither, or a tool has no name.
    """
    if tools is None:
        return ()
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else ()
        except (ValueError, RecursionError):
            raise ValueError("is not valid JSON; give a list of tools") from None
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise ValueError("must be a list of tools")
    return tuple(_definition(tool) for tool in tools)


def _definition(tool: Any) -> Tool:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError('a tool must be {"type": "function", "function": {"name": …, "parameters": …}}')
    return {"type": "function", "function": dict(function)}
