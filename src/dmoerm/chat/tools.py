"""Conversations with tool calls, as a chat template renders them, or as text for a template without tools.

    messages, tools  →  ToolConversation  →  dicts for the template, with markers  →  (template's text, message), …

A template formats the values of calls, results and definitions itself, for example as JSON. They are rendered with it,
but a special token in them is replaced by a placeholder, so that only the template's own text has special tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import BackboneError
from ..message import Message, Tool, ToolCall

SLOT = "\ue000{}\ue001"
"""Private-use characters: where a text goes in the rendered template."""
_MARKER = re.compile(SLOT.format("([0-9]+)"))
_PLACEHOLDER = re.compile("\ue002([0-9]+)\ue003")


def uses_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    """Return whether a conversation has definitions, calls or results of tools."""
    return bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)


def without_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Return the conversation as plain turns of system, user and assistant.

    Definitions are appended to the system message, or precede the first turn, in `<tools>`; calls are appended to the
    assistant's text, each in `<tool_call>`; consecutive results form a user's turn, each in `<tool_response>`.
    """
    turns: list[Message] = []
    previous = None
    for message in messages:
        if message.role == "tool":
            result = f"<tool_response>\n{message.content}\n</tool_response>"
            if previous == "tool":
                result = f"{turns.pop().content}\n{result}"
            turns.append(Message(role="user", content=result))
        else:
            turns.append(Message(role=message.role, content=message.text))
        previous = message.role
    if tools:
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        first, block = turns[0], f"<tools>\n{lines}\n</tools>"
        texts = (first.content, block) if first.role == "system" else (block, first.content)
        turns[0] = Message(role=first.role, content="\n\n".join(texts))
    return turns


class ToolConversation:
    """A conversation in the form that templates expect, with a marker for everything that they must print.

    Args:
        guarded: the texts of special tokens.
        arguments_as_text: gives the arguments of calls as JSON text; otherwise as an object.
        no_content: the content of a message with tool calls alone: an empty text or None. Templates differ in both.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        guarded: Sequence[str],
        arguments_as_text: bool = False,
        no_content: str | None = "",
    ) -> None:
        self._guarded = guarded
        self._pattern = re.compile("|".join(map(re.escape, sorted(guarded, key=len, reverse=True))))
        self._arguments_as_text, self._no_content = arguments_as_text, no_content
        self._markers: list[tuple[str, str]] = []  # in order: a marker and the text in its place
        self.messages = [self._message(message) for message in messages]
        self.messages.append({"role": "assistant", "content": self._mark()})
        self.tools = [self._definition(tool, f"tool {index}") for index, tool in enumerate(tools)]

    def split(self, rendered: str) -> Iterator[tuple[str, str]]:
        """Yield pieces of the template's text, each with the text that follows it, up to the response.

        Raises:
            BackboneError: the template does not print a message, a call, a result or a definition, or reorders them.
        """
        for index in range(len(self.tools)):
            marker = SLOT.format(f"tool {index}")
            if marker not in rendered:
                raise BackboneError("the chat template drops the definitions of tools")
            rendered = rendered.replace(marker, "")
        for marker, text in self._markers:
            before, separator, rendered = rendered.partition(marker)
            if not separator:
                raise BackboneError("the chat template drops or reorders messages with tools")
            yield self._filled(before), text

    def _filled(self, text: str) -> str:
        """Return the template's text without markers that it prints once more, as with the name of a call's result."""
        return _MARKER.sub(lambda match: self._guard(self._markers[int(match[1])][1]), text)

    def template_pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield pieces of the template's text, each with whether its special tokens are the template's own."""
        end = 0
        for match in _PLACEHOLDER.finditer(text):
            yield text[end : match.start()], True
            yield self._guarded[int(match[1])], False
            end = match.end()
        yield text[end:], True

    def _mark(self, text: str = "") -> str:
        marker = SLOT.format(len(self._markers))
        self._markers.append((marker, text))
        return marker

    def _message(self, message: Message) -> dict[str, Any]:
        if message.role == "tool":
            turn = {"role": "tool", "content": self._mark() + self._guard(message.content)}
            given = {"tool_call_id": message.tool_call_id, "name": message.name}
            return turn | {name: self._guard(value) for name, value in given.items() if value is not None}
        if not message.tool_calls:
            return {"role": message.role, "content": self._mark(message.content)}
        content = self._mark(message.content) if message.content else self._no_content
        calls = [self._call(call) for call in message.tool_calls]
        return {"role": message.role, "content": content, "tool_calls": calls}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = call.function.arguments if self._arguments_as_text else call.function.values()
        function = {"name": self._mark() + self._guard(call.function.name), "arguments": self._guard(arguments)}
        identity = {} if call.id is None else {"id": self._guard(call.id)}
        return identity | {"type": "function", "function": function}

    def _definition(self, tool: Tool, name: str) -> Tool:
        function = self._guard(tool["function"])
        return {"type": "function", "function": function | {"name": SLOT.format(name) + function["name"]}}

    def _guard(self, value: Any) -> Any:
        """Replace special tokens in all texts of a value by placeholders."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: f"\ue002{self._guarded.index(match[0])}\ue003", value)
        if isinstance(value, dict):
            return {self._guard(name): self._guard(entry) for name, entry in value.items()}
        return [self._guard(entry) for entry in value] if isinstance(value, list | tuple) else value


def guarded_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of a tokenizer's special tokens and the characters of markers and placeholders."""
    added: Any = tokenizer.added_tokens_decoder
    special = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    return [*sorted(text for text in special if text), "\ue000", "\ue001", "\ue002", "\ue003"]
