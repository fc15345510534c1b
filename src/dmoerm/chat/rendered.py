"""Conversations that a chat template has turned into one text, read back: ChatML, Llama 3, Gemma; any other as it is.

A text does not say which of its markers the template wrote and which a person or a policy did. Where a prompt is known,
a response is what follows it; where messages can be had, they are better than text.
"""

from __future__ import annotations

import re

from ..errors import DataError
from ..schema import Message, Prompt

_SPECIAL = (
    r"(?:<\|[^|<>]{1,40}\|>|</?s>|<pad>|<eos>|<bos>|<start_of_turn>|<end_of_turn>)"  # what tokenizers add around texts
)
_BEGINNING, _TOKEN = re.compile(rf"(?:\s*{_SPECIAL})*"), re.compile(_SPECIAL)
_TURN = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)(system|user|assistant|model)(?:<\|end_header_id\|>)?\s*\n"
    r"(.*?)(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|\Z)",
    re.DOTALL,
)


def conversation(prompt: str) -> Prompt:
    """The turns of a prompt that a template has rendered; any other one as text, without special tokens around it."""
    turns = _turns(prompt)
    if turns and turns[-1].role == "assistant" and not turns[-1].content:  # where the response goes
        turns = turns[:-1]
    return turns or bare(prompt)


def bare(text: str) -> str:
    """A text without the special tokens and white space around it."""
    beginning = _BEGINNING.match(text)
    text = text[beginning.end() if beginning else 0 :]
    end = len(text)
    for token in reversed(list(_TOKEN.finditer(text))):  # one pattern for it would take n² steps on n tokens
        if text[token.end() : end].strip():
            break
        end = token.start()
    return text[:end].strip()


def split_response(text: str) -> tuple[Prompt, str]:
    """Prompt and response of one rendered text. Raises `DataError` where nothing says where the response begins."""
    turns = _turns(text)
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise DataError(
            "nothing in the text says where the response begins",
            field="input",
            value=text,
            hint="send messages, or the conversation as a chat template renders it, the response its last turn",
        )
    return turns[:-1], turns[-1].content


def response_text(query: str, prompt: str) -> str:
    """The response without the special tokens around it. Raises `DataError` if the query does not hold the prompt."""
    if not prompt:
        raise DataError("a prompt is empty", field="prompts", hint="pass prompts as they were read")
    _, found, response = query.partition(prompt)
    if not found:
        raise DataError(
            "the query does not hold its prompt", field="queries", value=query, hint="pass prompts as they were read"
        )
    return bare(response)


def _turns(text: str) -> tuple[Message, ...]:
    return tuple(
        Message(role="assistant" if role == "model" else role, content=content.strip())  # pyright: ignore[reportArgumentType]
        for role, content in _TURN.findall(text)
    )
