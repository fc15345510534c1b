"""Parse conversations that a chat template has rendered as text: ChatML, Llama 3 and Gemma; others stay text.

A text does not show which of its markers the template wrote and which a person or a policy wrote. If the prompt is
known, the response is what follows it. If messages are available, prefer them to text.
"""

from __future__ import annotations

import re

from ..errors import DataError
from ..schema import Message, Prompt, is_empty

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
        raise DataError(
            "the text does not show where the response begins",
            field="input",
            value=text,
            hint="send messages, or a conversation rendered by a chat template whose last turn is the response",
        )
    return turns[:-1], turns[-1].content


def response_text(query: str, prompt: str) -> str:
    """Return the text after the prompt. Raise `DataError` if the query lacks the prompt."""
    if not prompt:
        raise DataError("a prompt is empty", field="prompts", hint="pass the prompts unchanged")
    _, match, response = query.partition(prompt)
    if not match:
        raise DataError(
            "the query does not contain its prompt", field="queries", value=query, hint="pass the prompts unchanged"
        )
    return response


def _turns(text: str) -> tuple[Message, ...]:
    return tuple(
        Message(role=_ROLES.get(role, role), content=content)  # pyright: ignore[reportArgumentType]
        for role, content in _TURN.findall(text)
    )
