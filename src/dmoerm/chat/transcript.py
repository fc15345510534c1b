"""Parse a conversation that the model's own chat template has rendered into prompt and response.

Clients of classifiers send a single text. If this model's tokenizer rendered it, the parsed messages have the tokens
that the original messages had; a text in another known format is parsed by `dmoerm.chat.rendered`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ..errors import BackboneError, DataError
from ..schema import Message, Prompt, Query, is_empty, messages_of, stripped
from .encoding import Encoded, Encoder
from .rendered import conversation, split_response

_USER, _ASSISTANT = Message(role="user", content="x"), Message(role="assistant", content="y")
_SYSTEM = Message(role="system", content="z")


class Transcript:
    """Parse texts by what an encoder's template writes before, between and after the turns."""

    def __init__(self, encoder: Encoder) -> None:
        self._start, self._to_response, self._end = encoder.template.texts([_USER])
        self._to_user = _template_text(encoder, [_USER, _ASSISTANT, _USER], 2)
        self._system_start = _template_text(encoder, [_SYSTEM, _USER], 0)
        self._system_end = _template_text(encoder, [_SYSTEM, _USER], 1)
        self._encoder, self._tokenizer = encoder, cast("Any", encoder.tokenizer)
        self._bos = str(encoder.tokenizer.bos_token or "")

    def read(self, text: str) -> tuple[Prompt, str]:
        """Return prompt and response.

        Raises:
            DataError: the text does not show where the response begins.
        """
        turns = self._turns(text)
        if turns is None:
            return split_response(text)
        if len(turns) < 2:
            raise DataError(
                "no response follows the prompt",
                field="input",
                value=text,
                hint="render a conversation that ends with the assistant's turn",
            )
        return tuple(turns[:-1]), turns[-1].content

    def read_ids(self, ids: Sequence[int]) -> tuple[Prompt, str]:
        """Return prompt and response of a conversation that this model's tokenizer has encoded.

        Raises:
            DataError: an id is not in the vocabulary, or the text does not show where the response begins.
        """
        size = len(self._tokenizer)
        if unknown := [index for index in ids if not 0 <= index < size]:
            hint = f"encode texts with this model's tokenizer, whose ids are below {size}"
            raise DataError("is not a token id of the model", field="input", value=unknown[0], hint=hint)
        return self.read(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def split(self, ids: Sequence[int]) -> Encoded:
        """Split the ids of a rendered conversation as `Encoder.split` does, without white space around the texts.

        Raises:
            DataError: as `Encoder.split`.
        """
        try:
            prompt, response = self.read_ids(ids)
        except DataError:  # the tokenizer's template is in another form
            return self._encoder.split(ids)
        texts = response, *(message.content for message in messages_of(prompt))
        if all(text == stripped(text) for text in texts):
            return self._encoder.split(ids)
        return self._encoder.encode(Query(prompt=prompt, responses=(response,)))

    def prompt(self, text: str) -> Prompt:
        """Return the conversation of a rendered prompt; a text in an unknown format is the prompt itself."""
        turns = self._turns(text)
        if turns is None:
            return conversation(text)
        return tuple(turns if turns[-1].role == "user" or not is_empty(turns[-1].content) else turns[:-1])

    def _turns(self, text: str) -> list[Message] | None:
        """Return all turns with the response, or None if this template did not render the text."""
        system, rest = self._begin(text)
        if rest is None or not self._to_response:
            return None
        first, *others = rest.split(self._to_response)
        turns = [*system, Message(role="user", content=first)]
        for part in others[:-1]:
            answer, separator, question = part.partition(self._to_user or "\0")
            if not separator:
                return None
            turns += [Message(role="assistant", content=answer), Message(role="user", content=question)]
        if others:
            turns.append(Message(role="assistant", content=self._without_end(others[-1])))
        return turns

    def _begin(self, text: str) -> tuple[list[Message], str | None]:
        """Return the system turn, if there is one, and the text after the start of the first user turn."""
        for start in _with_and_without(self._bos, self._start):
            if text.startswith(start):
                return [], text[len(start) :]
        for start in _with_and_without(self._bos, self._system_start):
            if text.startswith(start) and self._system_end in text:
                system, _, rest = text[len(start) :].partition(self._system_end)
                return [Message(role="system", content=system)], rest
        return [], None

    def _without_end(self, response: str) -> str:
        for end in (self._end, self._end.rstrip()):
            if end and response.endswith(end):
                return response[: -len(end)]
        return response


def _with_and_without(bos: str, start: str) -> list[str]:
    """Return the possible starts of a text: clients whose server adds the BOS token omit it."""
    return [text for text in (start, start.removeprefix(bos)) if text] if start else []


def _template_text(encoder: Encoder, messages: list[Message], index: int) -> str:
    """Return the template's text at this index; empty if the template rejects such a conversation."""
    try:
        return encoder.template.texts(messages)[index]
    except (DataError, BackboneError):
        return ""
