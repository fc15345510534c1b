"""Parse conversations that a chat template has rendered as text into prompt and response.

`Transcript` reads what this model's own template writes: the parsed messages have the tokens that the original messages
had. The functions read ChatML, Llama 3 and Gemma; any other text stays text. A text does not show which of its markers
the template wrote and which a person or a policy wrote, so prefer messages to text where there are messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from ..errors import BackboneError, DataError
from ..schema import Message, Prompt, Query, is_empty, messages_of, stripped

if TYPE_CHECKING:
    from .encoding import Encoded, Encoder

_ROLES = {"model": "assistant", "ipython": "tool"}  # Gemma's and Llama's names
_TURN = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)(system|developer|user|assistant|model|tool|ipython)(?:<\|end_header_id\|>)?\s*\n"
    r"(.*?)(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|\Z)",
    re.DOTALL,
)


def conversation(prompt: str) -> Prompt:
    """Return the turns of a rendered prompt, or the text of any other prompt."""
    turns = _turns(prompt)
    if turns and turns[-1].role == "assistant" and is_empty(turns[-1].content):  # the place of the response
        turns = turns[:-1]
    return turns or prompt


def split_response(text: str) -> tuple[Prompt, str]:
    """Return prompt and response of a rendered text. Raise `DataError` if the start of the response is unknown."""
    turns = _turns(text)
    if len(turns) < 2 or turns[-1].role != "assistant":
        hint = "send messages, or a conversation rendered by a chat template whose last turn is the response"
        raise DataError("the text does not show where the response begins", field="input", value=text, hint=hint)
    return turns[:-1], turns[-1].content


def response_text(query: str, prompt: str) -> str:
    """Return the text after the prompt. Raise `DataError` if the query lacks the prompt."""
    hint = "pass the prompts unchanged"
    if not prompt:
        raise DataError("a prompt is empty", field="prompts", hint=hint)
    _, match, response = query.partition(prompt)
    if not match:
        raise DataError("the query does not contain its prompt", field="queries", value=query, hint=hint)
    return response


def _turns(text: str) -> tuple[Message, ...]:
    return tuple(
        Message(role=_ROLES.get(role, role), content=content)  # pyright: ignore[reportArgumentType]
        for role, content in _TURN.findall(text)
    )


class Transcript:
    """Parse texts by what an encoder's template writes before, between and after the turns."""

    def __init__(self, encoder: Encoder) -> None:
        system, user, assistant = (Message(role=role, content="x") for role in ("system", "user", "assistant"))

        def template_text(messages: list[Message], index: int) -> str:
            """Return the template's text at this index; empty if the template rejects such a conversation."""
            try:
                return encoder.template.texts(messages)[index]
            except (DataError, BackboneError):
                return ""

        self._encoder, self._tokenizer = encoder, cast("Any", encoder.tokenizer)
        self._start, self._to_response, self._end = encoder.template.texts([user])
        self._to_user = template_text([user, assistant, user], 2)
        self._system_start, self._system_end = template_text([system, user], 0), template_text([system, user], 1)

    def read(self, text: str) -> tuple[Prompt, str]:
        """Return prompt and response. Raise `DataError` if the text does not show where the response begins."""
        turns = self._turns_of(text)
        if turns is None:
            return split_response(text)
        if len(turns) < 2:
            hint = "render a conversation that ends with the assistant's turn"
            raise DataError("no response follows the prompt", field="input", value=text, hint=hint)
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
        turns = self._turns_of(text)
        if turns is None:
            return conversation(text)
        return tuple(turns if turns[-1].role == "user" or not is_empty(turns[-1].content) else turns[:-1])

    def _turns_of(self, text: str) -> list[Message] | None:
        """Return all turns with the response, or None if this template did not render the text."""
        bos = str(self._tokenizer.bos_token or "")  # clients whose server adds the BOS token omit it
        turns, rest = list[Message](), None
        for start in (self._start, self._start.removeprefix(bos)):
            if rest is None and start and text.startswith(start):
                rest = text[len(start) :]
        for start in (self._system_start, self._system_start.removeprefix(bos)):
            if rest is None and start and text.startswith(start) and self._system_end in text:
                system, _, rest = text[len(start) :].partition(self._system_end)
                turns = [Message(role="system", content=system)]
        if rest is None or not self._to_response:
            return None
        first, *others = rest.split(self._to_response)
        turns.append(Message(role="user", content=first))
        for part in others[:-1]:
            answer, separator, question = part.partition(self._to_user or "\0")
            if not separator:
                return None
            turns += [Message(role="assistant", content=answer), Message(role="user", content=question)]
        if others:
            ends = [end for end in (self._end, self._end.rstrip()) if end and others[-1].endswith(end)]
            turns.append(Message(role="assistant", content=others[-1].removesuffix(ends[0] if ends else "")))
        return turns
