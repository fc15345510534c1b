"""A tokenizer's chat template: the text that it writes around the messages of a conversation."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from ..errors import BackboneError, DataError
from ..message import Message
from .tools import SLOT

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
            text = self.write(slots) if self._kind == "chat" else self._plain(slots)
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

    def _plain(self, messages: list[dict[str, str]]) -> str:
        turns = [f"{_PLAIN_NAMES[message['role']]}: {message['content']}" for message in messages]
        return str(self._tokenizer.bos_token or "") + "\n\n".join(turns) + str(self._tokenizer.eos_token or "\n\n")
