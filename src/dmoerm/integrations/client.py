"""The clients of a reward server (`dmoerm serve`), with the same `score` as a model. They do not import torch.

    connection errors, timeouts, incomplete responses, 429, 502, 503, 504    retried: backoff, jitter, `Retry-After`
    500 without the server's message: Ray Serve's, when a replica has ended  retried
    400, 413, 422                                                            `DataError` with the server's message
    any other response but 200                                               `ServerError`

Scoring has no side effects, so a request can be sent again. The default retries span more than half a minute: clients
do not notice the restart of a server.

`BaseClient` builds requests and reads responses; `Client` and `AsyncClient` send them. Connections do not survive
`fork`: two processes on one connection read each other's responses. A forked process gets connections of its own for
each client that its parent made.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import itertools
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, Self, TypeVar, overload

import httpx2
from pydantic import BaseModel, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from ..errors import ConfigError, DataError, ServerError, first_fault, shorten
from ..schema import PromptInput, Query, ResponseLists
from ..scores import Score, Weights, adjusted, as_queries, check_weights

MAX_RESPONSES, MAX_CHARACTERS = 128, 32_000
"""Limits of one request. A single prompt and response with more characters form a request of their own."""

_TRANSIENT_STATUS, _DATA_STATUS = {429, 502, 503, 504}, {400, 413, 422}
_KEY_HINT = "check the key in $DMOERM_API_KEY"
_NO_SERVER = "check that the URL names a reward server, and that it serves the model"
_HINTS = {401: _KEY_HINT, 403: _KEY_HINT, 404: _NO_SERVER}
_FIRST_WAIT, _MAX_WAIT, _MAX_RETRY_AFTER = 0.25, 16.0, 120.0  # seconds
_BACKOFF = wait_exponential(multiplier=_FIRST_WAIT, max=_MAX_WAIT)

T = TypeVar("T")
Tasks = dict[str, list[str]]
"""Task → capabilities."""


class TransientError(Exception):
    """An attempt that failed and is retried.

    Attributes:
        retry_after: seconds that the server asks to wait; None if it does not say.
        hint: what to check if all attempts fail.
    """

    def __init__(self, reason: str, hint: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.hint, self.retry_after = hint, retry_after


class _ItemContent(BaseModel):
    scores: list[Score]


class _ScoreContent(BaseModel):
    items: list[_ItemContent]


class _ModelEntry(BaseModel):
    id: str
    tasks: Tasks


class _ModelsContent(BaseModel):
    data: list[_ModelEntry]


_clients: weakref.WeakSet[BaseClient] = weakref.WeakSet()


@dataclass(eq=False)
class BaseClient:
    """The settings of a client. It can be used from any number of threads, and in forked processes.

    Args:
        url: URL of the server, without a path.
        api_key: sent as `Authorization: Bearer KEY`; None selects $DMOERM_API_KEY, and an empty key sends no header.
        model: name of the model; None selects the server's.
        timeout: seconds until an attempt is abandoned, each for connecting and between parts of the response.
        retries: attempts after the first.
        concurrency: maximum number of requests in flight, over all threads or tasks that use the client.
        transport: an httpx2 transport that replaces the network; forked processes share it.

    Raises:
        ConfigError: the URL or the key is invalid.
    """

    url: str = "http://127.0.0.1:8000"
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    timeout: float = 60.0
    retries: int = 8
    concurrency: int = 16
    transport: Any = None

    _http_type: ClassVar[type[Any]]
    _semaphore_type: ClassVar[type[Any]]

    def __post_init__(self) -> None:
        try:
            valid = self.url.startswith(("http://", "https://")) and httpx2.URL(self.url).host
        except httpx2.InvalidURL:
            valid = False
        if not valid:
            raise ConfigError(f"url must be an http:// or https:// URL with a host (got {self.url!r})")
        self.url = self.url.rstrip("/")
        self.api_key = os.environ.get("DMOERM_API_KEY", "") if self.api_key is None else self.api_key
        if not (self.api_key.isascii() and (self.api_key + " ").isprintable()):
            raise ConfigError(f"the API key contains characters that an HTTP header cannot contain; {_KEY_HINT}")
        self._connect()
        _clients.add(self)

    def _connect(self) -> None:
        """Create the HTTP client of this process; it connects when it sends the first request."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        self._slots = self._semaphore_type(self.concurrency)
        options: Any = {"headers": headers, "timeout": self.timeout, "transport": self.transport}
        self._http = self._http_type(base_url=self.url, **options)

    def _retry_policy(self) -> dict[str, Any]:
        """Return the arguments of tenacity's `Retrying` and `AsyncRetrying`."""
        stop, retry = stop_after_attempt(self.retries + 1), retry_if_exception_type(TransientError)
        return {"stop": stop, "retry": retry, "wait": wait_seconds, "retry_error_callback": self._give_up}

    def _give_up(self, state: RetryCallState) -> NoReturn:
        error: Any = state.outcome and state.outcome.exception()
        attempts = f"{self.retries + 1} attempt{'s' if self.retries else ''}"
        raise ServerError(f"{error} (after {attempts}); {error.hint}") from None

    @contextlib.contextmanager
    def _sending(self, request: httpx2.Request) -> Iterator[None]:
        """Raise our errors for a request that gets no response."""
        try:
            yield
        except httpx2.RequestError as error:
            reason = f"{request.url}: {type(error).__name__}: {_line(error)}"
            if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
                raise ServerError(f"{reason}; the request cannot be sent") from None
            raise TransientError(reason, "check that the server is running") from None

    def _read(self, response: httpx2.Response) -> Any:
        """Return the content of a response, or raise the error that it stands for."""
        where, status, message = str(response.request.url), response.status_code, _message(response)
        reason = f"{where}: status {status}: {_line(response.text if message is None else message)}"
        if status in _TRANSIENT_STATUS or (status == 500 and message is None):
            raise TransientError(reason, "the server is busy or starting", _retry_after(response))
        if status in _DATA_STATUS:
            raise DataError(reason)
        if status != 200:
            raise ServerError(f"{reason}; {_HINTS.get(status, 'see the log of the server')}")
        try:
            return response.json()
        except ValueError:
            got = shorten(response.text)
            raise ServerError(f"{where}: the response is not JSON (got {got}); check the URL") from None

    def _body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """Return the body of a request for the scores of queries."""
        items = [query.model_dump(include={"id", "prompt", "responses", "task", "tools"}) for query in queries]
        return {"model": self.model, "items": items, "win_probabilities": False}

    def _scores(self, queries: Sequence[Query], content: Any) -> list[list[Score]]:
        """Return the queries' scores in a response."""
        scores = [item.scores for item in self._parsed(_ScoreContent, content).items]
        expected, received = [len(query.responses) for query in queries], list(map(len, scores))
        if received != expected:
            message = f"the server returned {received} scores for {expected} responses"
            raise ServerError(f"{self.url}: {message}; this is an error of the server")
        return scores

    def _models(self, content: Any) -> dict[str, Tasks]:
        return {entry.id: entry.tasks for entry in self._parsed(_ModelsContent, content).data}

    def _tasks_of(self, models: dict[str, Tasks]) -> Tasks:
        """Return the tasks of the client's model."""
        if self.model not in (None, *models):
            known = ", ".join(models)
            raise ConfigError(f"{self.url} has no model {self.model!r}; use one of {known}, or None for the first")
        return models[self.model or next(iter(models))]

    def _parsed(self, kind: type[Any], content: Any) -> Any:
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            fault = first_fault(error)
            message = f"{fault.field}: {fault.message} (got {shorten(content)})"
            raise ServerError(f"{self.url}: not a reward server's response: {message}") from None


class Client(BaseClient):
    """A client of a reward server. Use it as a context manager, from any number of threads.

    See `BaseClient` for the arguments.

    Example:
        with Client("http://127.0.0.1:8000") as client:
            scores = client.score("Why is the sky blue?", ["Rayleigh scattering.", "Because."])
    """

    _http_type, _semaphore_type = httpx2.Client, threading.Semaphore

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @overload
    def score(
        self, prompt: PromptInput, responses: Sequence[str], task: str | None = None, weights: Weights | None = None
    ) -> list[Score]: ...
    @overload
    def score(
        self,
        prompt: Sequence[PromptInput],
        responses: ResponseLists,
        task: str | Sequence[str | None] | None = None,
        weights: Weights | None = None,
    ) -> list[list[Score]]: ...
    def score(self, prompt: Any, responses: Any, task: Any = None, weights: Any = None) -> Any:
        """Score the responses to one prompt, or to each of several prompts, as `DMoERM.score` does.

        Raises:
            DataError: a text is empty, a weight is invalid, or the server rejects the query (unknown task, text too
                long).
            ServerError: the server does not respond after all attempts, or its response contains no scores.
            ConfigError: with weights, the server has no model with the client's model name.
        """
        queries, single = as_queries(prompt, responses, task)
        scores = list(self.score_queries(queries, weights))
        return scores[0] if single else scores

    def score_queries(self, queries: Sequence[Query], weights: Weights | None = None) -> Iterator[list[Score]]:
        """Yield the scores of each query, several queries per request, sent as the iterator is read. See `score`."""
        if weights is not None:
            check_weights(weights, self.tasks(), [query.task for query in queries])
        parts = split_queries(queries)
        scored = (self._scores(part, self._call("POST", "/v1/score", self._body(part))) for part in parts)
        return adjusted(_join(queries, scored), weights)

    def models(self) -> dict[str, Tasks]:
        """Return the server's models: name → task → capabilities. Raises `ServerError`."""
        return self._models(self._call("GET", "/v1/models"))

    def tasks(self) -> Tasks:
        """Return the tasks of the client's model: task → capabilities. Raises `ConfigError` for an unknown model."""
        return self._tasks_of(self.models())

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = self._http.build_request(method, path, json=body)

        def attempt() -> Any:
            with self._slots, self._sending(request):
                response = self._http.send(request)
            return self._read(response)

        return Retrying(**self._retry_policy())(attempt)


class AsyncClient(BaseClient):
    """The asynchronous client of a reward server. All requests of a call are sent at once, up to `concurrency`.

    See `BaseClient` for the arguments, and `Client` for the methods.
    """

    _http_type, _semaphore_type = httpx2.AsyncClient, asyncio.Semaphore

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @overload
    async def score(
        self, prompt: PromptInput, responses: Sequence[str], task: str | None = None, weights: Weights | None = None
    ) -> list[Score]: ...
    @overload
    async def score(
        self,
        prompt: Sequence[PromptInput],
        responses: ResponseLists,
        task: str | Sequence[str | None] | None = None,
        weights: Weights | None = None,
    ) -> list[list[Score]]: ...
    async def score(self, prompt: Any, responses: Any, task: Any = None, weights: Any = None) -> Any:
        """Score the responses to one prompt, or to each of several prompts. See `Client.score`."""
        queries, single = as_queries(prompt, responses, task)
        scores = await self.score_queries(queries, weights)
        return scores[0] if single else scores

    async def score_queries(self, queries: Sequence[Query], weights: Weights | None = None) -> list[list[Score]]:
        """Return the scores of each query, in order. See `Client.score`."""
        if weights is not None:
            check_weights(weights, await self.tasks(), [query.task for query in queries])

        async def ask(part: list[Query]) -> list[list[Score]]:
            return self._scores(part, await self._call("POST", "/v1/score", self._body(part)))

        requests = [asyncio.ensure_future(ask(part)) for part in split_queries(queries)]
        try:
            return list(adjusted(_join(queries, await asyncio.gather(*requests)), weights))
        finally:
            for request in requests:  # after an error, the other requests are of no use
                request.cancel()

    async def models(self) -> dict[str, Tasks]:
        """Return the server's models. See `Client.models`."""
        return self._models(await self._call("GET", "/v1/models"))

    async def tasks(self) -> Tasks:
        """Return the tasks of the client's model. See `Client.tasks`."""
        return self._tasks_of(await self.models())

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = self._http.build_request(method, path, json=body)

        async def attempt() -> Any:
            with self._sending(request):
                async with self._slots:
                    response = await self._http.send(request)
            return self._read(response)

        return await AsyncRetrying(**self._retry_policy())(attempt)


def _connect_in_child() -> None:
    """Replace what forked processes must not share: connections, and semaphores that a thread of the parent holds."""
    for client in list(_clients):
        client._connect()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_connect_in_child)


# --- requests of bounded size --------------------------------------------------------------------------------------


def split_queries(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """Yield the queries in order, in requests within the limits; a query that exceeds them is split."""

    def prompt_size(query: Query) -> int:  # the tools are sent and rendered with the prompt
        return len(str(query.prompt)) + (len(json.dumps(query.tools)) if query.tools else 0)

    parts = (
        query.model_copy(update={"responses": tuple(responses)})
        for query in queries
        for responses in _bounded(query.responses, lambda text: (1, len(text)), MAX_CHARACTERS - prompt_size(query))
    )
    return _bounded(parts, lambda part: (len(part.responses), prompt_size(part) + sum(map(len, part.responses))))


def _bounded(
    items: Iterable[T], size_of: Callable[[T], tuple[int, int]], max_characters: int = MAX_CHARACTERS
) -> Iterator[list[T]]:
    """Yield lists of items in order within the limits; an item that exceeds them is alone in its list.

    Args:
        size_of: returns an item's number of responses and of characters.
    """
    batch: list[T] = []
    total_responses = total_characters = 0
    for item in items:
        responses, characters = size_of(item)
        full = total_responses + responses > MAX_RESPONSES or total_characters + characters > max_characters
        if batch and full:
            yield batch
            batch, total_responses, total_characters = [], 0, 0
        batch.append(item)
        total_responses, total_characters = total_responses + responses, total_characters + characters
    if batch:
        yield batch


def _join(queries: Sequence[Query], requests: Iterable[list[list[Score]]]) -> Iterator[list[Score]]:
    """Yield one list of scores per query, from the scores of the requests of `split_queries`."""
    scores = (score for request in requests for part in request for score in part)
    for query in queries:
        yield list(itertools.islice(scores, len(query.responses)))


# --- responses -----------------------------------------------------------------------------------------------------


def wait_seconds(state: RetryCallState) -> float:
    """Return the pause before the next attempt: the server's `Retry-After`, or exponential backoff with jitter."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, TransientError) and error.retry_after is not None:
        return min(error.retry_after, _MAX_RETRY_AFTER) * random.uniform(1.0, 1.1)
    return _BACKOFF(state) * random.uniform(0.5, 1.0)


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds in `Retry-After`, a number or a date; None without a valid value."""
    header = response.headers.get("Retry-After", "")
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _message(response: httpx2.Response) -> Any:
    """Return the message of a reward server's error; None for a response of another server, such as a proxy."""
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None


def _line(value: object) -> str:
    return " ".join(str(value).split())[:300]
