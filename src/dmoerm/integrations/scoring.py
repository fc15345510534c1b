"""Shared by all reward functions: conversion of prompts and completions, and scoring of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..chat.rendered import conversation
from ..errors import DataError
from ..schema import Message, Prompt, Query
from ..scores import Score, Scorer, group_by_prompt
from .source import score_async


def score_samples(scorer: Scorer, samples: Iterable[tuple[str | None, Prompt, str]]) -> list[Score]:
    """Score samples; each prompt runs once for all its responses.

    Args:
        samples: task (None: the router decides), prompt and response of each sample.

    Returns:
        One score per sample, in order.

    Raises:
        DataError: a prompt is empty, a task is unknown, or a text is longer than the model's maximum.
    """
    groups = group_by_prompt(samples)
    return _in_order(groups, scorer.score_queries([query for query, _ in groups]) if groups else ())


async def score_samples_async(scorer: Scorer, samples: Iterable[tuple[str | None, Prompt, str]]) -> list[Score]:
    """Score samples without blocking the event loop. See `score_samples` and `score_async`."""
    groups = group_by_prompt(samples)
    return _in_order(groups, await score_async(scorer, [query for query, _ in groups]) if groups else ())


def _in_order(groups: Sequence[tuple[Query, list[int]]], scored: Iterable[list[Score]]) -> list[Score]:
    """Return the scores of grouped samples in the samples' order."""
    by_index: dict[int, Score] = {}
    for (_, indices), scores in zip(groups, scored, strict=True):
        by_index |= dict(zip(indices, scores, strict=True))
    return [by_index[index] for index in range(len(by_index))]


def as_prompt(prompt: str | Iterable[Mapping[str, Any]]) -> Prompt:
    """Convert a trainer's prompt: chat messages, or a text, which is parsed if a chat template has rendered it.

    Raises:
        DataError: a message has no valid role or content.
    """
    if isinstance(prompt, str):
        return conversation(prompt)
    return tuple(_message(message) for message in prompt)


def as_response(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Convert a trainer's completion: a text, or chat messages, of which the last is the response."""
    if isinstance(completion, str):
        return completion
    return _message({"role": "assistant", "content": None} | dict(completion[-1])).text if completion else ""


def _message(message: Mapping[str, Any]) -> Message:
    try:
        content = message.get("content") if message.get("tool_calls") else message["content"]
        return Message.model_validate({**message, "content": _text(content)})
    except (AttributeError, KeyError, TypeError, ValidationError):
        hint = "give role (system, user, assistant or tool) and content to every message"
        raise DataError("is not a chat message", field="prompt", value=message, hint=hint) from None


def _text(content: Any) -> str:
    """Return a message's text; text parts are concatenated, None is the empty text."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part.get("type") == "text")
