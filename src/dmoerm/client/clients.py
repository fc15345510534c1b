"""A reward server's two clients: the same `score` as the model's, here and asynchronously."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import httpx2

from ..schema import Query
from ..scores import Score, as_queries
from .asking import DEFAULT_URL, Asking, Outcome, Steps, T, chunks, joined


class Client(Asking):
    """A reward server, asked one request at a time; use as a context manager, from as many threads as you like.

    Args:
        url: where the server is, without a path of the protocol's own.
        api_key: sent as `Authorization: Bearer KEY`; None: what the environment's DMOERM_API_KEY holds, if anything.
        model: the model's name, where the server has several; None: its first.
        timeout: seconds a try may take to connect, and to go on answering.
        retries: tries after the first.
        transport: in place of the network.

    Raises:
        ConfigError: the URL or the key is none.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 60.0,
        retries: int = 8,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, model, timeout, retries)
        self._http = httpx2.Client(**self._settings, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def score(self, prompt: Any, responses: Any, task: Any = None) -> Any:
        """As `DMoERM.score`: `Score`s of the responses to one prompt, or to each of several prompts.

        Raises:
            DataError: an empty text, or what the server refuses: an unknown task, a text longer than the model takes.
            ServerError: no answer after all tries, or one without scores.
        """
        queries, one = as_queries(prompt, responses, task)
        scores = list(self.score_queries(queries))
        return scores[0] if one else scores

    def score_queries(self, queries: Sequence[Query]) -> Iterator[list[Score]]:
        """As `DMoERM.score_queries`, several queries a request, asked as they are read. Raises as `score` does."""
        return joined(queries, (self._run(self._score(chunk)) for chunk in chunks(queries)))

    def models(self) -> dict[str, dict[str, list[str]]]:
        """The server's models, the default one first: name → task → its capabilities. Raises `ServerError`."""
        return self._run(self._models())

    def ready(self) -> bool:
        """Whether the server answers, and has its model; asked once."""
        return self._run(self._ready())

    def ask(self, path: str, body: Any) -> Any:
        """The answer to a request of any other protocol, its retries and errors those of `score`."""
        return self._run(self._ask("POST", path, body))

    def _run(self, steps: Steps[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return end.value
            try:
                outcome = self._http.send(step) if isinstance(step, httpx2.Request) else time.sleep(step)
            except httpx2.RequestError as error:
                outcome = error


class AsyncClient(Asking):
    """The same, asynchronously: all requests of a call at once, `concurrency` of them on their way."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 60.0,
        retries: int = 8,
        concurrency: int = 16,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, model, timeout, retries)
        self._http = httpx2.AsyncClient(**self._settings, transport=transport)
        self._free = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def score(self, prompt: Any, responses: Any, task: Any = None) -> Any:
        """See `Client.score`."""
        queries, one = as_queries(prompt, responses, task)
        scores = await self.score_queries(queries)
        return scores[0] if one else scores

    async def score_queries(self, queries: Sequence[Query]) -> list[list[Score]]:
        """One list a query, in order. See `Client.score`."""
        asked = [asyncio.ensure_future(self._run(self._score(chunk))) for chunk in chunks(queries)]
        try:
            return list(joined(queries, await asyncio.gather(*asked)))
        finally:
            for one in asked:  # where one has failed, the others are of no use
                one.cancel()

    async def models(self) -> dict[str, dict[str, list[str]]]:
        """See `Client.models`."""
        return await self._run(self._models())

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._run(self._ready())

    async def _run(self, steps: Steps[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return end.value
            try:
                outcome = await (self._send(step) if isinstance(step, httpx2.Request) else asyncio.sleep(step))
            except httpx2.RequestError as error:
                outcome = error

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        async with self._free:
            return await self._http.send(request)
