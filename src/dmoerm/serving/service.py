"""The model behind all protocols: loaded in the background, with the queue of requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, Request

from ..chat.rendered import Transcript
from ..model import DMoERM
from ..schema import Prompt, Query
from ..scores import Score, Weights, adjusted, check_weights, group_by_prompt, in_order
from .batcher import Batcher, Priority
from .monitoring import Metrics
from .settings import Refusal, ServingConfig

_WARM_UP = Query(prompt="How are you?", responses=("Fine, thank you. And you?", "No.") * 16)


class Service:
    """The interface of the protocols.

    Args:
        load: returns the model; called in a thread once the server runs.
        name: the model's name in answers.
        on_failure: called when the model cannot be loaded, or its queue cannot be worked off.

    Attributes:
        failure: the error that `on_failure` is called for, or None.
    """

    def __init__(
        self, load: Callable[[], DMoERM], name: str, settings: ServingConfig, on_failure: Callable[[], None]
    ) -> None:
        self.name, self.settings, self.metrics = name, settings, Metrics()
        self.failure: Exception | None = None
        self._load, self._on_failure = load, on_failure
        self._started = asyncio.Event()  # set once the model is loaded or cannot be loaded
        self._batcher: Batcher | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the model and score requests until the block ends."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        try:
            batcher = Batcher(await asyncio.to_thread(self._load), self.settings, self.metrics)
            with contextlib.closing(batcher):
                await asyncio.to_thread(batcher.warm, _WARM_UP)
                self._batcher = batcher
                self._started.set()
                logging.getLogger("dmoerm.serving").info("ready", extra={"model": self.name})
                await batcher.run()
        except Exception as error:  # whatever a file, a device or a library raises: the server stops and reports it
            self.failure = error
            self._started.set()
            self._on_failure()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warm, and its queue is worked off."""
        return self._batcher is not None and self.failure is None

    async def loaded(self) -> None:
        """Return once the model is loaded and warm. Raises `failure`."""
        await self._started.wait()
        if self.failure is not None:
            raise self.failure

    @property
    def batcher(self) -> Batcher:
        """The model's queue. Raises `Refusal` until the model is loaded, as `model` and `transcript` do."""
        if self._batcher is None:
            message, headers = "the model is loading; try again in 1 s", {"Retry-After": "1"}
            raise Refusal(503, message, "overloaded_error", headers)
        return self._batcher

    @property
    def model(self) -> DMoERM:
        """The model."""
        return self.batcher.model

    @functools.cached_property
    def transcript(self) -> Transcript:
        """The parser of rendered conversations."""
        return Transcript(self.model.encoder)

    def card(self) -> dict[str, Any]:
        """Describe the model: its tasks and capabilities, and the limits of a request."""
        config, settings = self.model.config, self.settings
        limits = {
            "responses": settings.max_responses,
            "body_bytes": settings.max_body_bytes,
            "request_tokens": settings.max_request_tokens,
            "text_tokens": config.text_tokens,
        }
        card = {"id": self.name, "object": "model", "created": int(time.time()), "owned_by": "dmoerm"}
        card |= {"root": self.name, "parent": None, "max_model_len": config.text_tokens}  # as vLLM has them
        return {**card, "tasks": config.tasks, "limits": limits}

    async def score(
        self, request: Request, queries: Sequence[Query], weights: Weights | None = None
    ) -> list[list[Score]]:
        """Score queries; return one list per query.

        The urgency that the header `Priority: u=N` asks for (RFC 9218) is interactive for N from 0 to 2.

        Args:
            request: gets the numbers of responses and tokens as `state.responses` and `state.tokens`.
            weights: as in `DMoERM.score`; applied after the pass, which requests with other weights share.

        Raises:
            DataError: the request has too many responses, a weight is invalid, and as `Batcher.score`.
            ServerError: as `Batcher.score`.
        """
        check_weights(weights, self.model.config.tasks, [query.task for query in queries])
        scored, request.state.tokens = await self.batcher.score(queries, _priority(request))
        request.state.responses = sum(map(len, scored))
        return list(adjusted(scored, weights))

    async def score_texts(self, request: Request, texts: Sequence[tuple[Prompt, str]]) -> list[Score]:
        """Return one score per prompt and response, in order; equal prompts run once. See `score`."""
        groups = group_by_prompt((None, prompt, response) for prompt, response in texts)
        scored, request.state.tokens = await self.batcher.score([query for query, _ in groups], _priority(request))
        request.state.responses = len(texts)
        return in_order(groups, scored)


def _priority(request: Request) -> Priority:
    urgency = re.search(r"(?:^|[ ,])u=([0-7])(?:$|[ ,;])", request.headers.get("priority", ""))
    return "interactive" if urgency and int(urgency[1]) < 3 else "bulk"


def _service(request: Request) -> Service:
    return request.app.state.service


CurrentService = Annotated[Service, Depends(_service)]
"""The model behind the application, as an argument of a route."""
