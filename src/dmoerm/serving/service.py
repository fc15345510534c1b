"""The model behind all protocols: loaded in the background, and used only while a client waits for the answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request

from ..chat.transcript import Transcript
from ..errors import DataError, ServerError
from ..schema import Message, Prompt, Query
from ..scores import Score, Weights, adjusted, check_risk, check_weights, group_by_prompt
from .batcher import Batcher, Priority
from .engines import Load, open_engines
from .judging import load_templates
from .limits import ServingConfig
from .metrics import Metrics
from .score_cache import ScoreCache, merged, unknown

_LOG = logging.getLogger("dmoerm.serving")
_WARM_UP = Query(prompt="How are you?", responses=("Fine, thank you. And you?", "No.") * 16)


class NotReady(ServerError):
    """The model is not loaded yet."""

    def __init__(self) -> None:
        super().__init__("the model is loading; try again in 1 s")


class ClientLeft(Exception):
    """The client has disconnected."""


class Application(Protocol):
    """The models behind one application: a `Service`, or several in a `ModelPool`."""

    settings: ServingConfig
    metrics: Metrics

    @property
    def ready(self) -> bool:
        """Whether requests can be scored."""
        ...

    async def loaded(self) -> None:
        """Return once `ready`. Raises an error if the model cannot be loaded."""
        ...

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Score requests until the block ends."""
        ...

    def using(self, request: Request) -> contextlib.AbstractAsyncContextManager[Service]:
        """Yield the service for a request, until it is answered."""
        ...

    def cards(self) -> list[dict[str, Any]]:
        """Describe the models, the default first."""
        ...


class Service:
    """The interface of the protocols.

    Args:
        load: returns the model; called in a thread once the server runs, or in the engines' processes.
        name: the model's name in answers.
        on_failure: called when the model cannot be loaded, or its queue cannot be worked off.
        metrics: shared with other services of the application; None: its own.

    Attributes:
        failure: the error that `on_failure` is called for, or None.
        judge_templates: the judges' prompts that are recognized, by name.

    Raises:
        ConfigError: the file of `settings.judge_templates` is invalid.
    """

    def __init__(
        self,
        load: Load,
        name: str,
        settings: ServingConfig,
        on_failure: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
    ) -> None:
        self.name, self.settings, self.metrics = name, settings, metrics or Metrics()
        self.judge_templates = load_templates(settings.judge_templates)
        self._cache = ScoreCache(settings.score_cache, self.metrics)
        self.failure: Exception | None = None
        self._load, self._on_failure = load, on_failure
        self._started = asyncio.Event()  # set once the model is loaded or cannot be loaded
        self._loading: asyncio.Future[Batcher] | None = None
        self._batcher: Batcher | None = None
        self._transcript: Transcript | None = None

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
            if self._loading is not None:  # a model that is still being loaded is closed once it is there
                (batcher,) = await asyncio.gather(self._loading, return_exceptions=True)
                if isinstance(batcher, Batcher):
                    batcher.close()

    async def _run(self) -> None:
        try:
            self._loading = asyncio.ensure_future(asyncio.to_thread(self._warm))
            batcher = await asyncio.shield(self._loading)
            self._batcher = batcher
            self._transcript = Transcript(batcher.model.encoder)
            self._started.set()
            _LOG.info("ready", extra={"model": self.name})
            await batcher.run()
        except Exception as error:  # whatever a file, a device or a library raises: the server stops and reports it
            self.failure = error.exceptions[0] if isinstance(error, ExceptionGroup) else error  # of several engines
            self._started.set()
            self._on_failure()

    def _warm(self) -> Batcher:
        model, engines = open_engines(self._load, self.settings)
        batcher = Batcher(model, self.settings, self.metrics, engines)
        try:
            batcher.warm(_WARM_UP)
        except BaseException:
            batcher.close()
            raise
        return batcher

    @contextlib.asynccontextmanager
    async def using(self, request: Request) -> AsyncIterator[Service]:
        """Yield this service, whatever model the request names."""
        yield self

    def cards(self) -> list[dict[str, Any]]:
        """Describe the model. Raises `NotReady` until it is loaded."""
        return [model_card(self.name, self.batcher.model.config, self.settings)]

    @staticmethod
    def now() -> int:
        """Seconds since 1970."""
        return int(time.time())

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warm, and its queue is worked off."""
        return self._transcript is not None and self.failure is None

    async def loaded(self) -> None:
        """Return once the model is loaded and warm. Raises `failure`."""
        await self._started.wait()
        if self.failure is not None:
            raise self.failure

    @property
    def batcher(self) -> Batcher:
        """The model's queue. Raises `NotReady` until the model is loaded."""
        if self._batcher is None:
            raise NotReady
        return self._batcher

    @property
    def transcript(self) -> Transcript:
        """The parser of rendered conversations. Raises `NotReady` until the model is loaded."""
        if self._transcript is None:
            raise NotReady
        return self._transcript

    async def score(
        self, request: Request, queries: Sequence[Query], weights: Weights | None = None, risk: float = 0.0
    ) -> list[list[Score]]:
        """Score queries as long as the client is connected; return one list per query.

        Args:
            weights, risk: as in `DMoERM.score`. They are applied after the pass, which requests with other ones share.

        Raises:
            ClientLeft: the client has disconnected.
            DataError: the request has too many responses, a weight or the risk is invalid, and as `Batcher.score`.
            ServerError: as `Batcher.score`.
        """
        responses, limit = sum(len(query.responses) for query in queries), self.settings.max_responses
        if responses > limit:
            message = f"the request has {responses} responses; the limit is {limit}"
            raise DataError(message, hint="send them in several requests")
        check_weights(weights, self.batcher.model.config.tasks, [query.task for query in queries])
        check_risk(risk)
        known = self._cache.find(queries)
        missing = unknown(queries, known)
        scoring = asyncio.ensure_future(self.batcher.score(missing, _priority(request)))
        disconnect = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((scoring, disconnect), return_when=asyncio.FIRST_COMPLETED)
            if not scoring.done():
                raise ClientLeft
            scored, request.state.tokens = scoring.result()
        finally:
            for task in (scoring, disconnect):
                task.cancel()
        request.state.responses = responses
        self._cache.store(missing, scored)
        return list(adjusted(merged(known, scored), weights, risk))

    async def score_texts(self, request: Request, texts: Sequence[tuple[Prompt, str]]) -> list[Score]:
        """Return one score per prompt and response, in order; equal prompts run once. Raises as `score` does."""
        groups = group_by_prompt((None, prompt, response) for prompt, response in texts)
        by_index: dict[int, Score] = {}
        scored = await self.score(request, [query for query, _ in groups])
        for (_, indices), scores in zip(groups, scored, strict=True):
            by_index |= dict(zip(indices, scores, strict=True))
        return [by_index[index] for index in range(len(texts))]


def model_card(name: str, config: Any, settings: ServingConfig) -> dict[str, Any]:
    """Describe a model of the application: its tasks and capabilities, and the limits of a request.

    Args:
        config: a `DMoERMConfig`.
    """
    limits = {
        "responses": settings.max_responses,
        "body_bytes": settings.max_body_bytes,
        "request_tokens": settings.max_request_tokens,
        "text_tokens": config.text_tokens,
    }
    card = {"id": name, "object": "model", "created": Service.now(), "owned_by": "dmoerm"}
    card |= {"root": name, "parent": None, "max_model_len": config.text_tokens}  # as vLLM has them
    return {**card, "tasks": config.tasks, "limits": limits}


def conversation_of(messages: Sequence[Message]) -> tuple[Prompt, str]:
    """Split messages into prompt and response.

    Raises:
        DataError: the last message is not the assistant's, or there is only one.
    """
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise DataError(
            "the last message is not a response",
            field="messages",
            value=[message.role for message in messages],
            hint="end with the assistant's message, which is scored; the messages before it are its prompt",
        )
    return tuple(messages[:-1]), messages[-1].text


def _priority(request: Request) -> Priority:
    """Return the priority that the header `Priority: u=N` asks for (RFC 9218): N from 0 to 2 is interactive."""
    urgency = re.search(r"(?:^|[ ,])u=([0-7])(?:$|[ ,;])", request.headers.get("priority", ""))
    return "interactive" if urgency and int(urgency[1]) < 3 else "bulk"


async def _disconnected(request: Request) -> None:
    """Return once the client has disconnected; the body has been read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _application(request: Request) -> Application:
    return request.app.state.service


async def _current_service(request: Request) -> AsyncIterator[Service]:
    async with _application(request).using(request) as service:
        yield service


CurrentApplication = Annotated[Application, Depends(_application)]
"""The models behind the application, as an argument of a route."""
CurrentService = Annotated[Service, Depends(_current_service)]
"""The service of the model that the request names, as an argument of a route."""
