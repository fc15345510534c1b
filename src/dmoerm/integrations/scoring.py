"""Shared by the reward functions: the source of rewards, prompts and completions in every form, scores of samples."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx2
from pydantic import ValidationError

from ..chat.rendered import conversation
from ..errors import ConfigError, DataError
from ..schema import Message, Prompt
from ..scores import Score, Scorer, group_by_prompt, in_order
from .client import AsyncClient, Client

if TYPE_CHECKING:
    from ..model import DMoERM

Source = str | Path | Scorer
Sample = tuple[str | None, Prompt, str]
"""Task, prompt and response; without a task, the router decides."""

_open_locks: dict[int, threading.Lock] = {}  # by process: a lock that another thread holds during a fork stays locked
_CONCURRENCY = 256  # requests in flight; the more arrive together, the more share a prompt
_async_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Client, AsyncClient]] = (
    weakref.WeakKeyDictionary()
)


def open_scorer(source: Source | None = None) -> Scorer:
    """Open a scorer. Each source is opened once per process, also if several threads open it.

    Args:
        source: a server's URL; a run folder, a model folder or a hub name, whose model is loaded onto the GPU if there
            is one; a `DMoERM` or a `Client`, which is returned; by default the environment variable DMOERM_MODEL.

    Raises:
        ConfigError: DMOERM_MODEL is not set, or the package is dmoerm-client, which cannot load models.
        CheckpointError: the model does not exist.
    """
    source = source or os.environ.get("DMOERM_MODEL")
    if not source:
        raise ConfigError(
            "DMOERM_MODEL is not set; set it to the folder of a trained model, such as runs/mine/model, "
            "or to the URL of a reward server"
        )
    if not isinstance(source, str | Path):
        return source
    with _open_locks.setdefault(os.getpid(), threading.Lock()):
        return _open(str(source))


@functools.cache
def _open(source: str) -> Scorer:
    return Client(source) if source.startswith(("http://", "https://")) else _load(source)


def _load(path: str) -> Scorer:
    try:
        from ..io.paths import model_folder
        from ..model import DMoERM
    except ModuleNotFoundError as error:  # in dmoerm-client, which has neither of them
        hint = "install dmoerm from its source (pip install .), or give the URL of a reward server"
        raise ConfigError(f"{path}: loading a model needs {error.name}; {hint}") from None
    return DMoERM.from_pretrained(model_folder(path), device_map="auto")


@functools.cache
def tasks_of(scorer: Scorer) -> Mapping[str, Sequence[str]]:
    """Return the scorer's tasks with their capabilities; a server gets one request per process.

    Raises:
        ConfigError: the server has no model with the client's model name.
    """
    return scorer.tasks() if isinstance(scorer, Client) else cast("DMoERM", scorer).config.tasks


def score_samples(scorer: Scorer, samples: Iterable[Sample]) -> list[Score]:
    """Return one score per sample, in order; each prompt runs once for all its responses.

    Raises:
        DataError: a prompt is empty, a task is unknown, or a text is longer than the model's maximum.
    """
    groups = group_by_prompt(samples)
    return in_order(groups, scorer.score_queries([query for query, _ in groups]) if groups else ())


async def score_samples_async(scorer: Scorer, samples: Iterable[Sample]) -> list[Score]:
    """Score samples without blocking the event loop: a server by one asynchronous client per loop, a model in a thread.

    Raises as `score_samples` does.
    """
    if not isinstance(scorer, Client) or not isinstance(scorer.transport, httpx2.AsyncBaseTransport | None):
        return await asyncio.to_thread(score_samples, scorer, samples)
    clients, groups = _async_clients.setdefault(asyncio.get_running_loop(), {}), group_by_prompt(samples)
    if scorer not in clients:
        same = {name: getattr(scorer, name) for name in ("url", "api_key", "model", "timeout", "retries", "transport")}
        clients[scorer] = AsyncClient(**same, concurrency=_CONCURRENCY)
    return in_order(groups, await clients[scorer].score_queries([query for query, _ in groups]))


def as_prompt(prompt: str | Iterable[Mapping[str, Any]]) -> Prompt:
    """Convert a trainer's prompt: chat messages, or a text, which is parsed if a chat template has rendered it.

    Raises:
        DataError: a message has no valid role or content.
    """
    return conversation(prompt) if isinstance(prompt, str) else tuple(_message(message) for message in prompt)


def as_response(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Convert a trainer's completion: a text, or chat messages, of which the last is the response."""
    if isinstance(completion, str):
        return completion
    return _message({"role": "assistant", "content": None} | dict(completion[-1])).text if completion else ""


def _message(message: Mapping[str, Any]) -> Message:
    """Convert a chat message; its text parts are concatenated, and None is the empty text."""
    try:
        content = message.get("content") if message.get("tool_calls") else message["content"]
        if content is not None and not isinstance(content, str):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        return Message.model_validate({**message, "content": content or ""})
    except (AttributeError, KeyError, TypeError, ValidationError):
        hint = "give role (system, user, assistant or tool) and content to every message"
        raise DataError("is not a chat message", field="prompt", value=message, hint=hint) from None
