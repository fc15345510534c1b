"""Conversations that a chat template has turned into one text, read back: ChatML, Llama 3, Gemma; any other as it is.

A text does not say which of its markers the template wrote and which a person or a policy did. Where a prompt is known,
a response is what follows it; where messages can be had, they are better than text.
"""

from __future__ import annotations

import re

from .errors import DataError
from .schema import Message, Prompt

_SPECIAL = (
    r"(?:<\|[^|<>]{1,40}\|>|</?s>|<pad>|<eos>|<bos>|<start_of_turn>|<end_of_turn>)"  # what tokenizers add around texts
)
_ENDS = re.compile(rf"^(?:\s*{_SPECIAL})+|(?:{_SPECIAL}\s*)+$")
_TURN = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)(system|user|assistant|model)(?:<\|end_header_id\|>)?\s*\n"
    r"(.*?)(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>)",
    re.DOTALL,
)


def conversation(prompt: str) -> Prompt:
    """The turns of a prompt that a template has rendered; any other one as text, without special tokens around it."""
    turns = tuple(
        Message(role="assistant" if role == "model" else role, content=text.strip())  # pyright: ignore[reportArgumentType]
        for role, text in _TURN.findall(prompt)
    )
    return turns or bare(prompt)


def bare(text: str) -> str:
    """A text without the special tokens and white space around it."""
    return _ENDS.sub("", text).strip()


def response_text(query: str, prompt: str) -> str:
    """The response without the special tokens around it. Raises `DataError` if the query does not hold the prompt."""
    _, found, response = query.partition(prompt)
    if not found:
        raise DataError(
            "the query does not hold its prompt", field="queries", value=query, remedy="pass prompts as they were read"
        )
    return bare(response)
