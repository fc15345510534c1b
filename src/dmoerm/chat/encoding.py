"""Encode a conversation and a response as token ids, for training, evaluation and serving.

    prompt    <|im_start|>user ⏎ How are you?<|im_end|> ⏎ <|im_start|>assistant ⏎      shared by all its responses
    response  Fine, thanks.<|im_end|>                                                  ends with the end-of-turn token

Only the chat template's own text can become special tokens. The texts of messages and responses cannot, so a response
cannot end its turn or start another. White space and special tokens around a text are not part of it
(`dmoerm.schema.stripped`). Templates that print the date get a fixed one. Tool calls are rendered by the chat
template; for a template without tools they are written as text (`dmoerm.chat.template`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import secrets
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config import EncodingConfig
from ..errors import BackboneError, DataError
from ..message import Tool
from ..schema import Message, Prompt, Query, is_empty, messages_of, stripped
from .template import ChatTemplate, ToolConversation, guarded_texts, uses_tools, without_tools

_LOG = logging.getLogger("dmoerm.chat")
_CHARACTERS = 8  # of a text that are read at first for each token that may be kept; few tokens have more
_MARGIN = 256  # tokens at a cut that are not kept, since they could differ from those of the whole text


@dataclass(frozen=True)
class Encoded:
    """The token ids of a query: the prompt's once, and each response's.

    Attributes:
        truncated_at: the indices of the responses that were cut, or whose prompt was.
        empty_at: the indices of the empty responses; each is only an end-of-turn token, and its score is `MIN_REWARD`.
        cut_prompt: what the responses of `truncated_at` read in place of the prompt, if the others fit with the whole
            prompt; None if all responses have the same prompt, as in a pass: see `part`.
    """

    prompt: list[int]
    responses: list[list[int]]
    truncated_at: frozenset[int] = frozenset()
    empty_at: frozenset[int] = frozenset()
    cut_prompt: list[int] | None = None

    @property
    def tokens(self) -> int:
        """Tokens that a forward pass runs over, the prompt counted once."""
        return len(self.prompt) + len(self.cut_prompt or ()) + sum(map(len, self.responses))

    def part(self, first: int, end: int) -> Encoded:
        """Return the prompt with responses `first` to `end` − 1."""
        cut, empty = (frozenset(i - first for i in at if first <= i < end) for at in (self.truncated_at, self.empty_at))
        prompt, cut_prompt = self.prompt, self.cut_prompt
        if cut_prompt is not None and len(cut) in (0, end - first):
            prompt, cut_prompt = cut_prompt if cut else prompt, None
        return Encoded(prompt, self.responses[first:end], cut, empty, cut_prompt)

    @classmethod
    def join(cls, queries: Sequence[Encoded]) -> Encoded:
        """Return one query with all responses of several queries, which have the same prompt."""
        if len(queries) == 1:
            return queries[0]
        cut, empty, responses = set[int](), set[int](), list[list[int]]()
        for query in queries:
            cut |= {len(responses) + i for i in query.truncated_at}
            empty |= {len(responses) + i for i in query.empty_at}
            responses += query.responses
        return cls(queries[0].prompt, responses, frozenset(cut), frozenset(empty))

    @functools.cached_property
    def prompt_key(self) -> str:
        """A digest of the prompt's token ids."""
        return hashlib.sha256(repr(self.prompt).encode()).hexdigest()[:32]

    @functools.cached_property
    def key(self) -> str:
        """A digest of the token ids: the key of cached values."""
        return hashlib.sha256(repr([self.prompt, *self.responses]).encode()).hexdigest()[:32]


class Encoder:
    """Encode queries with one tokenizer, template and length limit.

    Args:
        limit: the longest sequence that the backbone accepts; None: only `config.max_length` applies.

    Raises:
        BackboneError: the tokenizer has no chat template and `template` is `chat`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: EncodingConfig, limit: int | None = None) -> None:
        self.tokenizer, self.config, self.template = tokenizer, config, ChatTemplate(tokenizer, config.template)
        self._guarded, self._warned = guarded_texts(tokenizer), False
        # A tokenizer keeps the `split_special_tokens` of its last call, which concurrent threads would mix up. A copy
        # of an encoder has its own tokenizer and lock, so copies encode in parallel.
        self._lock = threading.Lock()
        self.max_length = min(config.max_length, limit or config.max_length)
        self._template_ids: dict[str, list[int]] = {}
        opening, *_, before, after = self.template.texts([Message(role="user", content="x")])
        self.marker = self._special(before)  # between the last turn and the response: marks where a response starts
        self._end_of_turn = self._special(after.rstrip())
        # the special tokens that the tokenizer adds before a text
        whole, bare = tokenizer("x")["input_ids"], self._special("x")
        self._added = next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])
        # the end-of-turn token, since a pass needs at least one token of each response
        eos: Any = tokenizer.eos_token_id
        self.empty_response: list[int] = self._end_of_turn or [eos or 0]
        self._template_adds = bool(self._added) and self._special(opening)[: len(self._added)] == self._added

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied or sent to another process: all but the lock."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state with a new lock."""
        vars(self).update(state, _lock=threading.Lock())

    def encode(self, query: Query, one_prompt: bool = True) -> Encoded:
        """Return the token ids of a query.

        Args:
            one_prompt: whether the prompt is cut for all responses if it is cut for one, so that they can be compared;
                otherwise the ids of a response do not depend on the others.

        Raises:
            DataError: a text is longer than `max_length` and `truncation` is `error`.
        """
        return self.encode_all([query], one_prompt)[0]

    def encode_all(self, queries: Sequence[Query], one_prompt: bool = True) -> list[Encoded]:
        """Return the token ids of several queries, as `encode` does; one call of the tokenizer takes less time."""
        with self._lock:
            size = _CHARACTERS * (self.max_length + _MARGIN)
            parts = [self._turns(query.prompt, query.tools, size) for query in queries]
            texts = [message.content for turns, _ in parts for message in turns]
            texts += [stripped(text) for query in queries for text in query.responses]
            ids = iter(self._ends(texts, size))
            prompts = [self._conversation(turns, whole, ids) for turns, whole in parts]
            responses = [[self._ended(next(ids)) for _ in query.responses] for query in queries]
        return [self._cut(*each, one_prompt) for each in zip(queries, prompts, responses, strict=True)]

    def _cut(self, query: Query, prompt: list[int], responses: list[list[int]], one_prompt: bool) -> Encoded:
        empty = frozenset(i for i, text in enumerate(query.responses) if is_empty(text))
        longest = max(map(len, responses))
        if len(prompt) + longest <= self.max_length:
            return Encoded(prompt, responses, empty_at=empty)
        if self.config.truncation == "error":
            least = "" if len(prompt) + longest <= 2 * self.max_length else "at least "  # see `_ends`
            raise DataError(
                f"prompt and response are {least}{len(prompt) + longest} tokens long, "
                f"more than the {self.max_length} allowed",
                file=query.position,
                hint="raise encoding.max_length, or set encoding.truncation to keep_both, keep_end or keep_beginning",
            )
        # three quarters for the prompt, the rest for each response by itself: a score must not depend on others
        kept = self._cut_prompt(prompt, self.max_length * 3 // 4)
        limit, prompt_is_cut = self.max_length - len(kept), len(kept) < len(prompt)
        fits = [not prompt_is_cut and len(ids) <= limit for ids in responses]
        if prompt_is_cut and not one_prompt:
            fits = [len(prompt) + len(ids) <= self.max_length for ids in responses]
        cut = frozenset(i for i, whole in enumerate(fits) if not whole)
        end = self._end_of_turn
        ids = [ids if len(ids) <= limit else ids[: limit - len(end)] + end for ids in responses]
        if prompt_is_cut and any(fits):
            return Encoded(prompt, ids, cut, empty, cut_prompt=kept)
        return Encoded(kept, ids, cut, empty)

    def tokens(self, content: str | Sequence[Message], add_special: bool = True) -> list[int]:
        """Return the token ids of a text as the tokenizer gives them, or of a conversation as the model reads it.

        Args:
            content: if the last message is not the assistant's, the ids end where the response begins.
            add_special: whether the tokenizer adds its special tokens to a text.
        """
        with self._lock:
            if isinstance(content, str):
                ids: list[int] = self.tokenizer(content, add_special_tokens=add_special)["input_ids"]
                return ids
            answered = content[-1].role == "assistant"
            turns, whole = self._turns(tuple(content[:-1] if answered else content), (), sys.maxsize)
            prompt = self._conversation(turns, whole, iter(self._texts([message.content for message in turns])))
            return prompt + (self._ended(*self._texts([stripped(content[-1].text)])) if answered else [])

    def split(self, sequence: Sequence[int]) -> Encoded:
        """Split the token ids of a rendered conversation into prompt and response, as `encode` gives them.

        Special tokens that the tokenizer adds by itself and text that the template writes after the last turn are
        ignored.

        Raises:
            DataError: the ids do not show where the response begins, or text follows it.
        """
        added, marker, end, start = self._added, self.marker, self._end_of_turn, 0
        while added and list(sequence[start : start + len(added)]) == added:
            start += len(added)
        ids = (added if self._template_adds else []) + list(sequence[start:])  # once, if the template writes them
        starts = [i + len(marker) for i in range(len(ids) - len(marker)) if ids[i : i + len(marker)] == marker]
        response = ids[starts[-1] :] if starts else []
        ends = [i for i in range(len(response)) if end and response[i : i + len(end)] == end] or [len(response)]
        tokenizer: Any = self.tokenizer
        parts = response[: ends[0]], response[ends[0] :]
        text, rest = (tokenizer.decode(part, skip_special_tokens=True) for part in parts)
        if not starts or rest.strip():
            hint = "encode with the chat template, a response after its prompt, or use DMoERM.score"
            raise DataError(
                "the token ids do not show where the response begins", field="input_ids", value=ids, hint=hint
            )
        if is_empty(text):
            return Encoded(ids[: starts[-1]], [self.empty_response], empty_at=frozenset({0}))
        return Encoded(ids[: starts[-1]], [response[: ends[0]] + end])

    def _cut_prompt(self, ids: list[int], limit: int) -> list[int]:
        if len(ids) <= limit:
            return ids
        body, marker = ids[: -len(self.marker)], self.marker
        limit -= len(marker)
        if self.config.truncation == "keep_beginning":
            return body[:limit] + marker
        tail = limit if self.config.truncation == "keep_end" else limit - limit // 2
        return body[: limit - tail] + body[len(body) - tail :] + marker

    def _ended(self, ids: list[int]) -> list[int]:
        return ids + self._end_of_turn if ids else self.empty_response

    def _turns(self, prompt: Prompt, tools: Sequence[Tool], size: int) -> tuple[list[Message], list[int] | None]:
        """Return the turns of a prompt, or none of them and all ids if the template prints its tools.

        Args:
            size: as in `_ends`.
        """
        messages = [
            message.model_copy(update={"content": text})
            if (text := stripped(message.content)) != message.content
            else message
            for message in messages_of(prompt)
        ]
        if self.config.system and messages[0].role != "system":
            messages.insert(0, Message(role="system", content=stripped(self.config.system)))
        if not uses_tools(messages, tools):
            return messages, None
        whole = self._with_tools(messages, tools, size)
        return (without_tools(messages, tools), None) if whole is None else ([], whole)

    def _conversation(self, turns: Sequence[Message], whole: list[int] | None, ids: Iterator[list[int]]) -> list[int]:
        """Return the ids of what `_turns` returns; the next of `ids` are those of the turns' texts."""
        if whole is not None:
            return whole
        result: list[int] = []
        for text, message in zip(self.template.texts(turns)[:-1], [*turns, None], strict=True):
            result += self._special(text)
            result += next(ids) if message else []
        return result

    def _with_tools(self, messages: Sequence[Message], tools: Sequence[Tool], size: int) -> list[int] | None:
        """Return the ids of a conversation with tools; None if the template does not print all of it."""
        if self.config.template != "chat":
            return None
        for arguments_as_text, no_content in itertools.product((False, True), ("", None)):
            talk = ToolConversation(messages, tools, self._guarded, arguments_as_text, no_content)
            try:
                ids = list[int]()
                for template, text in talk.split(self.template.write(talk.messages, talk.tools)):
                    for piece, is_template in talk.template_pieces(template):
                        ids += self._ends([piece], size, is_template)[0]
                    ids += self._ends([text], size)[0]
                return ids
            except (DataError, BackboneError):
                continue
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "the chat template of %s does not print the tool calls of a conversation; they are written as text",
                self.tokenizer.name_or_path,
            )
        return None

    def _special(self, text: str) -> list[int]:
        """Return the ids of a text of the template; there are few, so they are kept."""
        if text not in self._template_ids:
            (self._template_ids[text],) = self._texts([text], special=True)
        return self._template_ids[text]

    def _texts(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Return the ids of texts. In those of messages and responses, special tokens are ordinary text."""
        written = [text for text in texts if text]
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": not special}
        ids = iter(self.tokenizer(written, **options)["input_ids"] if written else [])
        return [next(ids) if text else [] for text in texts]

    def _ends(self, texts: Sequence[str], size: int, special: bool = False) -> list[list[int]]:
        """Return the ids that `_texts` returns, but of a long text only those at its ends, which `_cut` needs.

        A cut in a text can change the tokens of the word in which it is, since a tokenizer splits texts into words
        before it merges. So `_MARGIN` tokens at the cut are dropped, and `max_length` or more remain at each end: the
        tokens of the whole text, unless a word (a run without white space and punctuation) is longer than the margin.

        Args:
            size: the characters at each end that are read. It is doubled for a text that has too few tokens in them.
        """
        long = [len(text) > 2 * size for text in texts]
        parts = [(text[:size], text[-size:]) if cut else (text,) for text, cut in zip(texts, long, strict=True)]
        ids = iter(self._texts([part for each in parts for part in each], special))
        result: list[list[int]] = []
        for text, cut in zip(texts, long, strict=True):
            head, tail = next(ids), next(ids) if cut else []
            if cut and min(len(head), len(tail)) < self.max_length + _MARGIN:
                result += self._ends([text], 2 * size, special)
            else:
                result.append(head[:-_MARGIN] + tail[_MARGIN:] if cut else head)
        return result

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of everything that determines token ids; a new one each time if the vocabulary cannot be read."""
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else secrets.token_hex()
        special = self.tokenizer.eos_token_id, self.tokenizer.bos_token, self.tokenizer.eos_token
        parts = vocabulary, special, self.tokenizer.chat_template, self.config, self.max_length
        return hashlib.sha256(repr(parts).encode()).hexdigest()
