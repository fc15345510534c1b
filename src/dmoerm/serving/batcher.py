"""Score requests of several clients together.

    request ──▶ encode (one thread) ──▶ queue ──▶ pass of at most `batch_tokens` tokens (one thread) ──▶ scores

A request is split into parts that fit in a pass; each part repeats the prompt. A pass takes one part of each waiting
request in turn, oldest first, so large requests delay small ones only a little. Requests with the same prompt, as
trainers send them that score one response at a time, share a pass, in which the prompt runs once. What shares a pass
changes rewards by rounding only; `ServingConfig.deterministic` removes that too.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from ..chat.encoding import Encoded
from ..errors import DataError, ServerError
from ..model import DMoERM
from ..model.batching import chunks
from ..schema import Query
from ..scores import Score
from .limits import ServingConfig
from .metrics import Metrics

_LOG = logging.getLogger("dmoerm.serving")


class Overloaded(ServerError):
    """The queue is full.

    Attributes:
        retry_after: seconds until the queue may have space.
    """

    def __init__(self, requests: int, tokens: int, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"the queue is full ({requests} requests, {tokens} tokens); try again in {retry_after} s")


class QueuedPart(NamedTuple):
    """Consecutive responses to one query's prompt, which run in the same pass.

    Attributes:
        query, first: the query's index in the request, and its first response's index in the query.
    """

    query: int
    first: int
    encoded: Encoded
    task: str | None

    @property
    def prompt(self) -> tuple[str | None, str]:
        """What parts must have in common to share a prompt: the task and the prompt's token ids."""
        return self.task, self.encoded.prompt_key


@dataclass(eq=False)
class QueuedRequest:
    """A request in the queue: its waiting parts, and the scores it has so far.

    Attributes:
        done: is set once all scores are there, or by an error.
        open: how many parts have no scores yet.
    """

    parts: collections.deque[QueuedPart]
    scores: list[list[Score | None]]
    done: asyncio.Future[None]
    open: int
    arrived: float = field(default_factory=time.monotonic)

    def add(self, part: QueuedPart, scores: Sequence[Score]) -> None:
        """Store a part's scores; the last part completes the request."""
        self.scores[part.query][part.first : part.first + len(scores)] = scores
        self.open -= 1
        if self.open == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the request by an error; its other parts leave the queue with it."""
        if not self.done.done():
            self.done.set_exception(error)


_Pass = Sequence[tuple[QueuedRequest, QueuedPart]]


class Batcher:
    """The queue of one model. `score` returns only while `run` is running."""

    def __init__(self, model: DMoERM, settings: ServingConfig, metrics: Metrics) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        self._budget = model.pass_tokens(settings.batch_tokens)
        self._queue: collections.deque[QueuedRequest] = collections.deque()
        self._waiting_tokens = self._requests = 0
        self._tokens_per_second = 1000.0
        self._arrived = asyncio.Event()
        self._encoding_thread = ThreadPoolExecutor(1, "encode")
        self._engine_thread = ThreadPoolExecutor(1, "engine")

    async def score(self, queries: Sequence[Query]) -> tuple[list[list[Score]], int]:
        """Score one request's queries; return the scores and the number of tokens.

        A cancelled call leaves the queue; only a part that is already in a pass is still scored.

        Raises:
            Overloaded: the queue is full.
            DataError: a task is unknown, or a text or the request is too long.
            ServerError: the model fails, or gives a reward that is not finite.
        """
        self._check_queue()
        self._count_requests(1)
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(self._encoding_thread, self._encode, queries)
            request = self._enqueue(queries, encoded)
            try:
                await request.done
            except asyncio.CancelledError:
                self.metrics.left.inc()
                raise
            finally:
                self._remove(request)
        finally:
            self._count_requests(-1)
        scores = [[score for score in row if score is not None] for row in request.scores]
        return scores, sum(each.tokens for each in encoded)

    async def run(self) -> None:
        """Score waiting requests, pass by pass, until cancelled."""
        while True:
            await self._arrived.wait()
            if self._waiting_tokens < self._budget and self.settings.batch_wait:
                await asyncio.sleep(self.settings.batch_wait)
            if parts := self._next_pass():
                await self._run_pass(parts)

    def close(self) -> None:
        """End the threads once their current work is done."""
        self._encoding_thread.shutdown(wait=False, cancel_futures=True)
        self._engine_thread.shutdown(wait=False, cancel_futures=True)

    # --- requests ----------------------------------------------------------------------------------------------

    def _check_queue(self) -> None:
        """Raise `Overloaded` if the queue is full."""
        if self._requests >= self.settings.queue_requests or self._waiting_tokens >= self.settings.queue_tokens:
            self.metrics.refused.inc()
            seconds = math.ceil(self._waiting_tokens / self._tokens_per_second)
            raise Overloaded(self._requests, self._waiting_tokens, max(1, min(60, seconds)))

    def _encode(self, queries: Sequence[Query]) -> list[Encoded]:
        limit, encoded, tokens = self.settings.max_request_tokens, [], 0
        for query in queries:
            if query.task is not None:
                self.model.task_model(query.task)
            encoded.append(self.model.encoder.encode(query))
            tokens += encoded[-1].tokens
            if tokens > limit:
                raise DataError(f"the request has more than {limit} tokens", hint="send it in several requests")
        return encoded

    def _enqueue(self, queries: Sequence[Query], encoded: Sequence[Encoded]) -> QueuedRequest:
        parts = collections.deque(
            QueuedPart(index, first, part, query.task)
            for index, (query, ids) in enumerate(zip(queries, encoded, strict=True))
            for first, part in chunks(ids, self._budget)
        )
        scores: list[list[Score | None]] = [[None] * len(query.responses) for query in queries]
        request = QueuedRequest(parts, scores, asyncio.get_running_loop().create_future(), open=len(parts))
        if parts:
            self._queue.append(request)
        else:
            request.done.set_result(None)
        self._count_tokens(sum(part.encoded.tokens for part in parts))
        if parts:
            self._arrived.set()
        return request

    def _remove(self, request: QueuedRequest) -> None:
        """Remove from the queue what is left of a request that has ended or whose client has disconnected."""
        self._count_tokens(-sum(part.encoded.tokens for part in request.parts))
        request.parts.clear()
        with contextlib.suppress(ValueError):
            self._queue.remove(request)

    def _count_requests(self, change: int) -> None:
        self._requests += change
        self.metrics.waiting_requests.set(self._requests)

    def _count_tokens(self, change: int) -> None:
        self._waiting_tokens += change
        self.metrics.waiting_tokens.set(self._waiting_tokens)

    # --- passes ------------------------------------------------------------------------------------------------

    def _next_pass(self) -> _Pass:
        """Take the next pass from the queue: one part of each request in turn, as long as they fit."""
        taken: list[tuple[QueuedRequest, QueuedPart]] = []
        prompts: set[tuple[str | None, str]] = set()
        tokens, now, limit = 0, time.monotonic(), self._pass_limit()
        for request in self._in_turn():
            part = request.parts[0]
            tokens += part.encoded.tokens - (len(part.encoded.prompt) if part.prompt in prompts else 0)
            if taken and tokens > limit:
                break
            if len(request.parts) == request.open:
                self.metrics.queued.observe(now - request.arrived)
            taken.append((request, request.parts.popleft()))
            prompts.add(part.prompt)
            self._queue.remove(request)
            if request.parts:
                self._queue.append(request)
        if not self._queue:
            self._arrived.clear()
        self._count_tokens(-sum(part.encoded.tokens for _, part in taken))
        return taken

    def _in_turn(self) -> Iterator[QueuedRequest]:
        """Yield the waiting requests, oldest first, each followed by those with the same prompt; then again."""
        while self._queue:
            by_prompt: dict[tuple[str | None, str], list[QueuedRequest]] = {}
            for request in self._queue:
                by_prompt.setdefault(request.parts[0].prompt, []).append(request)
            yield from itertools.chain.from_iterable(by_prompt.values())

    def _pass_limit(self) -> int:
        """Tokens of the next pass: half of a short queue, since requests that arrive in the meantime wait for the pass.

        A single request is not split, nor is a queue that is small compared with a full pass.
        """
        if len(self._queue) == 1:
            return self._budget
        return min(self._budget, max(self._waiting_tokens // 2, self._budget // 8))

    async def _run_pass(self, taken: _Pass) -> None:
        started, loop = time.monotonic(), asyncio.get_running_loop()
        by_prompt: dict[tuple[str | None, str], list[tuple[QueuedRequest, QueuedPart]]] = {}
        for entry in taken:
            by_prompt.setdefault(entry[1].prompt, []).append(entry)
        encoded = [Encoded.join([part.encoded for _, part in group]) for group in by_prompt.values()]
        score = self.model.score_separately if self.settings.deterministic else self.model.score_encoded
        try:
            rows = await loop.run_in_executor(self._engine_thread, score, encoded, [task for task, _ in by_prompt])
        except Exception as error:  # whatever the model or the device raises: other requests continue
            await self._handle_failure(taken, error)
            return
        self._measure(sum(each.tokens for each in encoded), time.monotonic() - started)
        for group, row in zip(by_prompt.values(), rows, strict=True):
            scores = iter(row)
            for request, part in group:
                self._answer(request, part, list(itertools.islice(scores, len(part.encoded.responses))))

    def _measure(self, tokens: int, seconds: float) -> None:
        self.metrics.batch_tokens.observe(tokens)
        self.metrics.batch_seconds.observe(seconds)
        self._tokens_per_second = 0.9 * self._tokens_per_second + 0.1 * tokens / max(seconds, 1e-6)

    def _answer(self, request: QueuedRequest, part: QueuedPart, scores: list[Score]) -> None:
        """Give a request the scores of one of its parts."""
        if all(math.isfinite(score.reward) for score in scores):
            self.metrics.scored(scores)
            request.add(part, scores)
        else:
            request.fail(ServerError("the model returned a reward that is not finite; score the text alone"))

    async def _handle_failure(self, taken: _Pass, error: Exception) -> None:
        """Score the parts of a failed pass one by one, so that only the part at fault fails."""
        _LOG.error("a pass failed", extra={"error": type(error).__name__, "parts": len(taken)})
        if len(taken) > 1:
            for part in taken:
                await self._run_pass([part])
        else:
            ((request, _),) = taken
            request.fail(ServerError(f"the model failed: {type(error).__name__}"))
