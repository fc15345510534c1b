"""The source of a trainer's rewards: a model in this process, or a reward server."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..client import AsyncClient, Client
from ..errors import ConfigError
from ..schema import Query
from ..scores import Score, Scorer

if TYPE_CHECKING:
    from ..model import DMoERM

MODEL_VARIABLE = "DMOERM_MODEL"
Source = str | Path | Scorer
_open_lock = threading.Lock()
_CONCURRENCY = 256  # requests in flight; the more arrive together, the more share a prompt
_async_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Client, AsyncClient]] = (
    weakref.WeakKeyDictionary()
)


def _renew_lock() -> None:
    """Replace the lock, which another thread of the parent may have held."""
    global _open_lock
    _open_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_lock)


def open_scorer(source: Source | None = None) -> Scorer:
    """Open a scorer. Each source is opened once per process, also if several threads open it.

    Args:
        source: a server's URL; a run folder, a model folder or a hub name, whose model is loaded onto the GPU if there
            is one; a `DMoERM` or a `Client`, which is returned; None: the environment variable DMOERM_MODEL.

    Raises:
        ConfigError: DMOERM_MODEL is not set, or the package is dmoerm-client, which cannot load models.
        CheckpointError: the model does not exist.
    """
    source = source or os.environ.get(MODEL_VARIABLE)
    if not source:
        raise ConfigError(
            f"{MODEL_VARIABLE} is not set; set it to the folder of a trained model, such as runs/mine/model, "
            "or to the URL of a reward server"
        )
    if not isinstance(source, str | Path):
        return source
    with _open_lock:
        return _open(str(source))


@functools.cache
def _open(source: str) -> Scorer:
    return Client(source) if source.startswith(("http://", "https://")) else _load(source)


async def score_async(scorer: Scorer, queries: Sequence[Query]) -> list[list[Score]]:
    """Score queries without blocking the event loop: by one asynchronous client per loop and client, with the same
    arguments; or in a thread, by a model, or a client whose transport is not asynchronous.

    Raises as `Client.score` and `DMoERM.score` do.
    """
    if not (isinstance(scorer, Client) and scorer.can_be_asynchronous):
        return await asyncio.to_thread(lambda: list(scorer.score_queries(queries)))
    clients = _async_clients.setdefault(asyncio.get_running_loop(), {})
    client = clients.get(scorer)
    if client is None:
        client = clients[scorer] = AsyncClient(**scorer.arguments, concurrency=_CONCURRENCY)
    return await client.score_queries(queries)


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
