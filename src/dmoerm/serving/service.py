"""One model behind all protocols: loaded in the background, asked by whoever still waits for the answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import Depends, Request

from ..chat.transcript import Transcript
from ..errors import DataError, ServerError
from ..model import DMoERM
from ..schema import Message, Prompt, Query
from ..scores import Score, group_by_prompt
from .batching import Batcher
from .metrics import Metrics
from .settings import ServingConfig

_LOG = logging.getLogger("dmoerm.serving")
_WARM_UP = Query(prompt="How are you?", responses=("Fine, thank you. And you?", "No."))


class NotReady(ServerError):
    """The model is not loaded yet."""


class ClientLeft(Exception):
    """Nobody waits for the answer."""


class Service:
    """What the protocols ask.

    Args:
        load: gives the model; called in a thread once the server runs.
        name: what the model is called in answers.
        on_failure: called when the model cannot be loaded.
    """

    def __init__(
        self, load: Callable[[], DMoERM], name: str, settings: ServingConfig, on_failure: Callable[[], None]
    ) -> None:
        self.name, self.settings, self.metrics = name, settings, Metrics()
        self.failure: Exception | None = None
        self._load, self._on_failure = load, on_failure
        self._batcher: Batcher | None = None
        self._transcript: Transcript | None = None

    @contextlib.asynccontextmanager
    async def running(self):
        """Loads the model and scores, until the block ends."""
        work = asyncio.create_task(self._run())
        try:
            yield
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            if self._batcher is not None:
                self._batcher.close()

    async def _run(self) -> None:
        try:
            batcher = await asyncio.to_thread(self._warm)
        except Exception as error:  # whatever a file, a device or a library raises: the server ends and says it
            self.failure = error
            self._on_failure()
            return
        self._transcript = Transcript(batcher.model.encoder)
        self._batcher = batcher
        _LOG.info("ready", extra={"model": self.name})
        await batcher.run()

    def _warm(self) -> Batcher:
        model = self._load()
        for _ in range(2):  # the first pass also picks the kernels
            model.score(_WARM_UP.prompt, list(_WARM_UP.responses))
        return Batcher(model, self.settings, self.metrics)

    @staticmethod
    def now() -> int:
        """Seconds since 1970."""
        return int(time.time())

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warm."""
        return self._batcher is not None

    @property
    def batcher(self) -> Batcher:
        """The model's queue. Raises `NotReady` as long as there is none."""
        if self._batcher is None:
            raise NotReady("the model is being loaded; ask again in 1 s")
        return self._batcher

    @property
    def transcript(self) -> Transcript:
        """Reads rendered conversations. Raises `NotReady` as long as there is no model."""
        if self._transcript is None:
            raise NotReady("the model is being loaded; ask again in 1 s")
        return self._transcript

    async def score(self, request: Request, queries: Sequence[Query]) -> list[list[Score]]:
        """One list a query, as long as the client is there.

        Raises:
            ClientLeft: it is not.
            DataError: too many responses; and what `Batcher.score` raises.
        """
        responses, limit = sum(len(query.responses) for query in queries), self.settings.max_responses
        if responses > limit:
            raise DataError(
                f"the request has {responses} responses; the server takes {limit} at once",
                hint="send them in several requests",
            )
        batcher = self.batcher
        found = asyncio.ensure_future(batcher.score(queries))
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait((found, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise ClientLeft
            scores, tokens = found.result()
        finally:
            for task in (found, leaving):
                task.cancel()
        request.state.tokens, request.state.responses = tokens, responses
        return scores

    async def score_texts(self, request: Request, texts: Sequence[tuple[Prompt, str]]) -> list[Score]:
        """Return one score per prompt and response, in order; equal prompts run once. Raises as `score` does."""
        groups = group_by_prompt((None, prompt, response) for prompt, response in texts)
        by_index: dict[int, Score] = {}
        scored = await self.score(request, [query for query, _ in groups]) if groups else []
        for (_, indices), scores in zip(groups, scored, strict=True):
            by_index |= dict(zip(indices, scores, strict=True))
        return [by_index[index] for index in range(len(texts))]


def conversation_of(messages: Sequence[Message]) -> tuple[Prompt, str]:
    """Prompt and response of messages. Raises `DataError` if they do not end with the assistant's."""
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise DataError(
            "the last message is no response",
            field="messages",
            value=[message.role for message in messages],
            hint="end with the assistant's message, which is scored; the others are its prompt",
        )
    return tuple(messages[:-1]), messages[-1].content


async def _left(request: Request) -> None:
    """Returns once the client has gone away; the body has been read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _service(request: Request) -> Service:
    return request.app.state.service


Asked = Annotated[Service, Depends(_service)]
"""The service, as a route's argument."""
