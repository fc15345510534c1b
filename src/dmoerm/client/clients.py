"""The synchronous and the asynchronous client of a reward server, with the same `score` as a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self, overload

import httpx2
from tenacity import AsyncRetrying, Retrying

from ..schema import PromptInput, Query, ResponseLists
from ..scores import Score, Weights, adjusted, as_queries, check_risk, check_weights
from .base import BaseClient, TransientError
from .chunks import join_scores, split_queries


class Client(BaseClient):
    """A client of a reward server. Use it as a context manager, from any number of threads.

    See `BaseClient` for the arguments.

    Example:
        with Client("http://127.0.0.1:8000") as client:
            scores = client.score("Why is the sky blue?", ["Rayleigh scattering.", "Because."])
    """

    _http_type, _semaphore_type = httpx2.Client, threading.Semaphore

    @property
    def can_be_asynchronous(self) -> bool:
        """Whether an `AsyncClient` with the same arguments is possible."""
        return isinstance(self.arguments["transport"], httpx2.AsyncBaseTransport | None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @overload
    def score(
        self,
        prompt: PromptInput,
        responses: Sequence[str],
        task: str | None = None,
        weights: Weights | None = None,
        risk: float = 0.0,
    ) -> list[Score]: ...
    @overload
    def score(
        self,
        prompt: Sequence[PromptInput],
        responses: ResponseLists,
        task: str | Sequence[str | None] | None = None,
        weights: Weights | None = None,
        risk: float = 0.0,
    ) -> list[list[Score]]: ...
    def score(
        self,
        prompt: PromptInput | Sequence[PromptInput],
        responses: Sequence[str] | ResponseLists,
        task: str | Sequence[str | None] | None = None,
        weights: Weights | None = None,
        risk: float = 0.0,
    ) -> list[Score] | list[list[Score]]:
        """Score the responses to one prompt, or to each of several prompts, as `DMoERM.score` does.

        Raises:
            DataError: a text is empty, a weight or the risk is invalid, the server's model has no uncertainty for a
                positive risk, or the server rejects the query (unknown task, text too long).
            ServerError: the server does not respond after all attempts, or its response contains no scores.
            ConfigError: with weights, the server has no model with the client's model name.
        """
        queries, single = as_queries(prompt, responses, task)
        scores = list(self.score_queries(queries, weights, risk))
        return scores[0] if single else scores

    def score_queries(
        self, queries: Sequence[Query], weights: Weights | None = None, risk: float = 0.0
    ) -> Iterator[list[Score]]:
        """Yield the scores of each query, several queries per request, sent as the iterator is read. See `score`."""
        check_risk(risk)
        if weights is not None:
            check_weights(weights, self.tasks(), [query.task for query in queries])
        return adjusted(join_scores(queries, map(self._score, split_queries(queries))), weights, risk)

    def models(self) -> dict[str, dict[str, list[str]]]:
        """Return the server's models, the default first: name → task → capabilities. Raises `ServerError`."""
        return self._models(self._call("GET", "/v1/models"))

    def tasks(self) -> dict[str, list[str]]:
        """Return the tasks of the client's model: task → capabilities. Raises `ConfigError` for an unknown model."""
        return self._tasks_of(self.models())

    def ready(self) -> bool:
        """Return whether the server responds and has loaded its model. A single attempt."""
        try:
            return self._http.get("/ready").status_code == 200
        except httpx2.RequestError:
            return False

    def post(self, path: str, body: Any) -> Any:
        """Send a request of another protocol and return its response, with the retries and errors of `score`."""
        return self._call("POST", path, body)

    def _score(self, queries: list[Query]) -> list[list[Score]]:
        return self._scores(queries, self._call("POST", "/v1/score", self._score_body(queries)))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = self._http.build_request(method, path, json=body)
        try:
            return Retrying(**self._retry_policy())(self._attempt, request)
        except TransientError as error:
            raise self._give_up(error) from None

    def _attempt(self, request: httpx2.Request) -> Any:
        try:
            with self._slots:
                response = self._http.send(request)
        except httpx2.RequestError as error:
            raise self._send_error(request, error) from None
        return self._read(response)


class AsyncClient(BaseClient):
    """The asynchronous client of a reward server. All requests of a call are sent at once, up to `concurrency`.

    See `BaseClient` for the arguments.
    """

    _http_type, _semaphore_type = httpx2.AsyncClient, asyncio.Semaphore

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @overload
    async def score(
        self,
        prompt: PromptInput,
        responses: Sequence[str],
        task: str | None = None,
        weights: Weights | None = None,
        risk: float = 0.0,
    ) -> list[Score]: ...
    @overload
    async def score(
        self,
        prompt: Sequence[PromptInput],
        responses: ResponseLists,
        task: str | Sequence[str | None] | None = None,
        weights: Weights | None = None,
        risk: float = 0.0,
    ) -> list[list[Score]]: ...
    async def score(
        self,
        prompt: PromptInput | Sequence[PromptInput],
        responses: Sequence[str] | ResponseLists,
        task: str | Sequence[str | None] | None = None,
        weights: Weights | None = None,
        risk: float = 0.0,
    ) -> list[Score] | list[list[Score]]:
        """Score the responses to one prompt, or to each of several prompts. See `Client.score`."""
        queries, single = as_queries(prompt, responses, task)
        scores = await self.score_queries(queries, weights, risk)
        return scores[0] if single else scores

    async def score_queries(
        self, queries: Sequence[Query], weights: Weights | None = None, risk: float = 0.0
    ) -> list[list[Score]]:
        """Return the scores of each query, in order. See `Client.score`."""
        check_risk(risk)
        if weights is not None:
            check_weights(weights, await self.tasks(), [query.task for query in queries])
        requests = [asyncio.ensure_future(self._score(chunk)) for chunk in split_queries(queries)]
        try:
            return list(adjusted(join_scores(queries, await asyncio.gather(*requests)), weights, risk))
        finally:
            for request in requests:  # after an error, the other requests are of no use
                request.cancel()

    async def models(self) -> dict[str, dict[str, list[str]]]:
        """Return the server's models. See `Client.models`."""
        return self._models(await self._call("GET", "/v1/models"))

    async def tasks(self) -> dict[str, list[str]]:
        """Return the tasks of the client's model. See `Client.tasks`."""
        return self._tasks_of(await self.models())

    async def ready(self) -> bool:
        """Return whether the server is ready. See `Client.ready`."""
        try:
            return (await self._http.get("/ready")).status_code == 200
        except httpx2.RequestError:
            return False

    async def post(self, path: str, body: Any) -> Any:
        """Send a request of another protocol. See `Client.post`."""
        return await self._call("POST", path, body)

    async def _score(self, queries: list[Query]) -> list[list[Score]]:
        return self._scores(queries, await self._call("POST", "/v1/score", self._score_body(queries)))

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        request = self._http.build_request(method, path, json=body)
        try:
            return await AsyncRetrying(**self._retry_policy())(self._attempt, request)
        except TransientError as error:
            raise self._give_up(error) from None

    async def _attempt(self, request: httpx2.Request) -> Any:
        try:
            async with self._slots:
                response = await self._http.send(request)
        except httpx2.RequestError as error:
            raise self._send_error(request, error) from None
        return self._read(response)
