"""What every trainer's plug-in does with a batch: reads prompts and completions of any form, scores a prompt once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from dmoerm.chat.rendered import bare, conversation
from dmoerm.errors import DataError
from dmoerm.schema import Message, Prompt
from dmoerm.scores import Score, Scorer, group_by_prompt


def score_samples(scorer: Scorer, samples: Iterable[tuple[str | None, Prompt, str]]) -> list[Score]:
    """Score samples of task (None: routed), prompt and response, in order; a prompt is run once for all its responses.

    Raises:
        DataError: a prompt is empty, a task is unknown, or a text is longer than the model reads.
    """
    groups = group_by_prompt(samples)
    by_index: dict[int, Score] = {}
    scored = scorer.score_queries([query for query, _ in groups]) if groups else ()
    for (_, indices), scores in zip(groups, scored, strict=True):
        by_index |= dict(zip(indices, scores, strict=True))
    return [by_index[index] for index in range(len(by_index))]


def as_prompt(prompt: str | Iterable[Mapping[str, Any]]) -> Prompt:
    """A trainer's prompt: a text, read back where a chat template has rendered it, or chat messages.

    Raises:
        DataError: a message whose role or content is none.
    """
    if isinstance(prompt, str):
        return conversation(prompt)
    return tuple(_turn(message) for message in prompt)


def as_response(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """A trainer's completion, a text or chat messages, of which the last is the response."""
    if isinstance(completion, str):
        return bare(completion)
    return bare(_text(completion[-1].get("content"))) if completion else ""


def _turn(message: Mapping[str, Any]) -> Message:
    try:
        return Message.model_validate({"role": message["role"], "content": _text(message["content"])})
    except (KeyError, TypeError, ValidationError):
        hint = "give role (system, user or assistant) and content to every message"
        raise DataError("is no chat message", field="prompt", value=message, hint=hint) from None


def _text(content: Any) -> str:
    """A message's text; of one in parts, that of its parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part.get("type") == "text")
