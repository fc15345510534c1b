"""A tokenizer's chat template, and conversations with tool calls in the form that it renders.

    messages, tools  →  ToolConversation  →  dicts for the template, with markers  →  (template's text, message), …

A template formats the values of calls, results and definitions itself, for example as JSON. They are rendered with it,
but a special token in them is replaced by a placeholder, so that only the template's own text has special tokens. For a
template without tools, they are written as text.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from ..errors import BackboneError, DataError
from ..message import Message, Tool, ToolCall

SLOT = "\ue000{}\ue001"
"""Private-use characters: where a text goes in the rendered template."""
_MARKER = re.compile(SLOT.format("([0-9]+)"))
_PLACEHOLDER = re.compile("\ue002([0-9]+)\ue003")
_PLAIN_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    f"{{{{ {_PLAIN_NAMES}[message['role']] }}}}: {{{{ message['content'] }}}}"
    "{{ '' if loop.last else '\n\n' }}{% endfor %}"
    "{{ '\n\nAssistant: ' if add_generation_prompt else eos_token }}"
)
"""The template `plain` in Jinja, for tools that render conversations themselves."""
_MAX_RENDERED = 1024  # templates depend on the roles of a conversation only, of which data have few sequences
_FIXED_DAY = datetime.datetime(2024, 7, 26)
# transformers gives templates no function but its own `strftime_now`, so a macro of that name takes its place
_FIXED_NOW = "{{% macro strftime_now(format) %}}{{{{ format{} }}}}{{% endmacro %}}{{{{ '' }}}}".format(
    "".join(f".replace('%{c}', '{_FIXED_DAY.strftime('%' + c)}')" for c in "aAbBdeHIjmMpSyY")
)


def on_a_fixed_day(template: str) -> str:
    """Return a chat template that prints a fixed date instead of today's."""
    return template if "strftime_now" not in template or template.startswith(_FIXED_NOW) else _FIXED_NOW + template


class ChatTemplate:
    """The chat template of a tokenizer, or the template `plain`.

    Raises:
        BackboneError: the tokenizer has no chat template and `kind` is `chat`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: Literal["chat", "plain"]) -> None:
        if kind == "chat" and not tokenizer.chat_template:
            raise BackboneError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; set encoding.template to plain"
            )
        self._tokenizer, self._kind = tokenizer, kind
        self._texts: dict[tuple[str, ...], list[str]] = {}

    def texts(self, messages: Sequence[Message]) -> list[str]:
        """Return the template's own texts: before, between and after the messages and the response.

        Raises:
            DataError: the template rejects the conversation.
            BackboneError: the template drops or reorders messages.
        """
        roles = tuple(message.role for message in messages)
        if roles not in self._texts:
            if len(self._texts) == _MAX_RENDERED:
                self._texts.clear()
            slots = [{"role": role, "content": SLOT.format(i)} for i, role in enumerate([*roles, "assistant"])]
            if self._kind == "chat":
                text = self.write(slots)
            else:
                turns = [f"{_PLAIN_NAMES[slot['role']]}: {slot['content']}" for slot in slots]
                bos, eos = self._tokenizer.bos_token or "", self._tokenizer.eos_token or "\n\n"
                text = str(bos) + "\n\n".join(turns) + str(eos)
            texts = []
            for slot in slots:
                before, separator, text = text.partition(slot["content"])
                if not separator:
                    raise BackboneError("the chat template drops or reorders messages; set encoding.template to plain")
                texts.append(before)
            self._texts[roles] = [*texts, text]
        return self._texts[roles]

    def write(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
        """Return a conversation as the chat template writes it.

        Raises:
            DataError: the template rejects the conversation.
        """
        fixed = on_a_fixed_day(self._tokenizer.get_chat_template())
        day: dict[str, Any] = {"date_string": f"{_FIXED_DAY:%d %b %Y}"}
        try:
            rendered: Any = self._tokenizer.apply_chat_template(
                messages, tools or None, chat_template=fixed, tokenize=False, **day
            )
        except Exception as error:  # a template is a program of the model's authors and may raise anything
            message, roles = f"the chat template rejects the conversation: {error}", [m["role"] for m in messages[:-1]]
            hint = "reorder the turns (user first, then alternating) or set encoding.template to plain"
            raise DataError(message, field="prompt", value=roles, hint=hint) from None
        return rendered


# --- tools ---------------------------------------------------------------------------------------------------------


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
        self.tools: list[Tool] = []
        for index, tool in enumerate(tools):
            function = self._guard(tool["function"])
            name = SLOT.format(f"tool {index}") + function["name"]
            self.tools.append({"type": "function", "function": function | {"name": name}})

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
            # without markers that the template prints once more, as with the name of a call's result
            yield _MARKER.sub(lambda match: self._guard(self._markers[int(match[1])][1]), before), text

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
