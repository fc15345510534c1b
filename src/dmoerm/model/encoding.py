"""From a conversation and a response to token ids: the one encoding of training, evaluation and serving.

    prompt    <|im_start|>user ⏎ How are you?<|im_end|> ⏎ <|im_start|>assistant ⏎      shared by all its responses
    response  Fine, thanks.<|im_end|>                                                  ends with the end-of-turn token

The chat template's own text may become special tokens; what people or models wrote never does, so that no response can
end its turn or open another. Templates that print the date are given a fixed one.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config import EncodingConfig
from ..errors import BackboneError, DataError
from ..schema import Message, Prompt, Query, is_empty

_PLAIN_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
_SLOT = "\ue000{}\ue001"  # private-use characters: where a message's text goes in the rendered template
_IN_TURN = threading.Lock()  # a tokenizer keeps what it was told last about special tokens: threads must not mix it up
_FIXED_DAY = datetime.datetime(2024, 7, 26)
# transformers gives templates no function but its own `strftime_now`, so a macro of that name takes its place
_FIXED_NOW = "{{% macro strftime_now(format) %}}{{{{ format{} }}}}{{% endmacro %}}{{{{ '' }}}}".format(
    "".join(f".replace('%{c}', '{_FIXED_DAY.strftime('%' + c)}')" for c in "aAbBdeHIjmMpSyY")
)


def on_a_fixed_day(template: str) -> str:
    """A chat template that prints a fixed date where this one prints today's."""
    return template if "strftime_now" not in template or template.startswith(_FIXED_NOW) else _FIXED_NOW + template


@dataclass(frozen=True)
class Encoded:
    """The token ids of a query: the prompt's once, and each response's.

    Attributes:
        truncated_at: the indices of the responses that were cut, or of all responses where the prompt was.
        empty_at: the indices of the empty responses; each is only an end-of-turn token, and its score is `MIN_REWARD`.
    """

    prompt: list[int]
    responses: list[list[int]]
    truncated_at: frozenset[int] = frozenset()
    empty_at: frozenset[int] = frozenset()

    @property
    def truncated(self) -> bool:
        """Whether the prompt or any response was cut."""
        return bool(self.truncated_at)

    @property
    def tokens(self) -> int:
        """Tokens that a forward pass runs over, the prompt counted once."""
        return len(self.prompt) + sum(map(len, self.responses))

    def part(self, first: int, end: int) -> Encoded:
        """Return the same prompt with responses `first` to `end` − 1."""
        cut, empty = (frozenset(i - first for i in at if first <= i < end) for at in (self.truncated_at, self.empty_at))
        return Encoded(self.prompt, self.responses[first:end], cut, empty)

    @functools.cached_property
    def key(self) -> str:
        """A digest of the token ids: the key of cached values."""
        return hashlib.sha256(repr([self.prompt, *self.responses]).encode()).hexdigest()[:32]


class Encoder:
    """Encodes queries with one tokenizer, template and length limit.

    Raises:
        BackboneError: the tokenizer has no chat template and `template` is `chat`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: EncodingConfig, limit: int | None = None) -> None:
        if config.template == "chat" and not tokenizer.chat_template:
            raise BackboneError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; set encoding.template to plain"
            )
        self.tokenizer, self.config = tokenizer, config
        self.max_length = min(config.max_length, limit or config.max_length)
        opening, *_, before, after = self.render([Message(role="user", content="x")])
        self.marker = self._special(before)  # between the last turn and the response: tells where a response begins
        self._end_of_turn = self._special(after.rstrip())
        self._added = self._put_before("x")
        self.empty_response = self._end_of_turn or [
            tokenizer.eos_token_id or 0
        ]  # a pass needs at least one token of each
        self._opens = bool(self._added) and self._special(opening)[: len(self._added)] == self._added

    def encode(self, query: Query) -> Encoded:
        """Return the token ids of a query.

        Raises:
            DataError: a text is longer than `max_length` and `too_long` is `error`.
        """
        with _IN_TURN:
            prompt = self._prompt(query.prompt)
            responses = [self._response(text) for text in query.responses]
        empty = frozenset(i for i, text in enumerate(query.responses) if is_empty(text))
        longest = max(map(len, responses))
        if self.config.too_long == "error":
            if len(prompt) + longest <= self.max_length:
                return Encoded(prompt, responses, empty_at=empty)
            raise DataError(
                f"prompt and response are {len(prompt) + longest} tokens long, more than the {self.max_length} allowed",
                field=f"query {query.id}",
                hint="raise encoding.max_length, or set encoding.too_long to keep_both, keep_end or keep_beginning",
            )
        # three quarters for the prompt, the rest for each response by itself: a score must not depend on its siblings
        kept = self._cut_prompt(prompt, self.max_length * 3 // 4)
        room = self.max_length - len(kept)
        cut = frozenset(i for i, ids in enumerate(responses) if len(kept) < len(prompt) or len(ids) > room)
        return Encoded(kept, [self._cut_response(ids, room) for ids in responses], cut, empty)

    def split(self, ids: Sequence[int]) -> Encoded:
        """Token ids that the tokenizer has made of a whole rendered conversation, as `encode` makes them of its query.

        What a tokenizer puts around any text by itself does not count, nor what a template writes after the last turn.

        Raises:
            DataError: nothing says where the response begins, or it is not the end.
        """
        ids, marker, end = self._opened(list(ids)), self.marker, self._end_of_turn
        starts = [i + len(marker) for i in range(len(ids) - len(marker)) if ids[i : i + len(marker)] == marker]
        response = ids[starts[-1] :] if starts else []
        ends = [i for i in range(len(response)) if end and response[i : i + len(end)] == end] or [len(response)]
        text, rest = (self._decode(part) for part in (response[: ends[0]], response[ends[0] :]))
        if not starts or rest.strip():
            raise DataError(
                "nothing in the token ids says where the response begins",
                field="input_ids",
                value=ids,
                hint="encode with the chat template, a response after its prompt, or use DMoERM.score",
            )
        if is_empty(text):
            return Encoded(ids[: starts[-1]], [self.empty_response], empty_at=frozenset({0}))
        return Encoded(ids[: starts[-1]], [response[: ends[0]] + end])

    def _decode(self, ids: Sequence[int]) -> str:
        text: Any = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _put_before(self, text: str) -> list[int]:
        """What the tokenizer by itself puts before any text."""
        whole, bare = self.tokenizer(text)["input_ids"], self._special(text)
        return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])

    def _opened(self, ids: list[int]) -> list[int]:
        """The same, with what the tokenizer puts before any text once if the template writes it, else not at all."""
        added, start = self._added, 0
        while added and ids[start : start + len(added)] == added:
            start += len(added)
        return (added if self._opens else []) + ids[start:]

    def _cut_response(self, ids: list[int], room: int) -> list[int]:
        return ids if len(ids) <= room else ids[: room - len(self._end_of_turn)] + self._end_of_turn

    def _cut_prompt(self, ids: list[int], room: int) -> list[int]:
        if len(ids) <= room:
            return ids
        body, marker = ids[: -len(self.marker)], self.marker
        room -= len(marker)
        if self.config.too_long == "keep_beginning":
            return body[:room] + marker
        tail = room if self.config.too_long == "keep_end" else room - room // 2
        return body[: room - tail] + body[len(body) - tail :] + marker

    def _response(self, text: str) -> list[int]:
        return self.empty_response if is_empty(text) else self._text(text) + self._end_of_turn

    def _prompt(self, prompt: Prompt) -> list[int]:
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)
        if self.config.system and messages[0].role != "system":
            messages.insert(0, Message(role="system", content=self.config.system))
        ids: list[int] = []
        for piece, message in zip(self.render(messages)[:-1], [*messages, None], strict=True):
            ids += self._special(piece)
            ids += self._text(message.content) if message else []
        return ids

    def render(self, messages: Sequence[Message]) -> list[str]:
        """The template's own text: before, between and after the messages' texts and the response.

        Raises:
            DataError: the template refuses the conversation.
            BackboneError: it drops or reorders messages.
        """
        slots = [{"role": m.role, "content": _SLOT.format(i)} for i, m in enumerate(messages)]
        slots.append({"role": "assistant", "content": _SLOT.format(len(messages))})
        text = self._chat(slots) if self.config.template == "chat" else self._plain(slots)
        pieces = []
        for slot in slots:
            before, found, text = text.partition(slot["content"])
            if not found:
                raise BackboneError("the chat template drops or reorders messages; set encoding.template to plain")
            pieces.append(before)
        return [*pieces, text]

    def _chat(self, messages: list[dict[str, str]]) -> str:
        fixed = on_a_fixed_day(self.tokenizer.get_chat_template())
        day: dict[str, Any] = {"date_string": f"{_FIXED_DAY:%d %b %Y}"}
        try:
            rendered: Any = self.tokenizer.apply_chat_template(messages, chat_template=fixed, tokenize=False, **day)
        except Exception as error:  # a template is a program of the model's authors: it may raise anything
            raise DataError(
                f"the chat template refuses the conversation: {error}",
                field="prompt",
                value=[message["role"] for message in messages[:-1]],
                hint="reorder the turns (user first, then alternating) or set encoding.template to plain",
            ) from None
        return rendered

    def _plain(self, messages: list[dict[str, str]]) -> str:
        turns = [f"{_PLAIN_NAMES[message['role']]}: {message['content']}" for message in messages]
        return str(self.tokenizer.bos_token or "") + "\n\n".join(turns) + str(self.tokenizer.eos_token or "\n\n")

    def _special(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _text(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
