"""Requests of many clients scored together.

    request ──▶ encode (one thread) ──▶ queue ──▶ a pass of at most so many tokens (one thread) ──▶ scores

A request is split into parts that fit in a pass; each part repeats the prompt. A pass takes one part of each waiting
request in turn, oldest first, so large requests delay small ones only a little. What shares a pass changes rewards by
rounding only; `ServingConfig.deterministic` removes that too.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from ..chat.encoding import Encoded
from ..errors import DataError, ServerError
from ..model import DMoERM
from ..model.batching import pieces
from ..schema import Query
from ..scores import Score
from .metrics import Metrics
from .settings import ServingConfig

_LOG = logging.getLogger("dmoerm.serving")


class Overloaded(ServerError):
    """Too much waits already.

    Attributes:
        retry_after: seconds until the queue may have room.
    """

    def __init__(self, waiting: str, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"{waiting} wait already; ask again in {retry_after} s")


class Part(NamedTuple):
    """Some responses to one query's prompt: what a pass takes whole."""

    query: int
    first: int
    encoded: Encoded
    task: str | None


@dataclass(eq=False)
class Job:
    """A request's parts, and where its scores come together."""

    parts: collections.deque[Part]
    scores: list[list[Score | None]]
    done: asyncio.Future[None]
    arrived: float = field(default_factory=time.monotonic)
    open: int = 0

    def take(self, part: Part, scores: Sequence[Score]) -> None:
        """Puts a part's scores in place; the last one ends the job."""
        self.scores[part.query][part.first : part.first + len(scores)] = scores
        self.open -= 1
        if self.open == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Ends the job by an error; its other parts leave the queue with it."""
        if not self.done.done():
            self.done.set_exception(error)


class Batcher:
    """The queue before one model. `run` must be running for `score` to return."""

    def __init__(self, model: DMoERM, settings: ServingConfig, metrics: Metrics) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        self._budget = model.pass_tokens(settings.batch_tokens)
        self._jobs: collections.deque[Job] = collections.deque()
        self._waiting_tokens = self._requests = 0
        self._tokens_a_second = 1000.0
        self._arrived = asyncio.Event()
        self._encoding = ThreadPoolExecutor(1, "encode")
        self._engine = ThreadPoolExecutor(1, "engine")

    async def score(self, queries: Sequence[Query]) -> tuple[list[list[Score]], int]:
        """The scores of one request's queries, and its number of tokens.

        A cancelled call leaves the queue; what is in a pass already is scored in vain.

        Raises:
            Overloaded: too much waits already.
            DataError: an unknown task, a text or a request too long.
            ServerError: the model gave no finite reward.
        """
        self._admit()
        self._requests += 1
        self.metrics.waiting_requests.set(self._requests)
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(self._encoding, self._encode, queries)
            tokens = sum(one.tokens for one in encoded)
            return await self._queue(queries, encoded, tokens), tokens
        finally:
            self._requests -= 1
            self.metrics.waiting_requests.set(self._requests)

    async def run(self) -> None:
        """Scores what waits, pass by pass, until cancelled."""
        while True:
            await self._arrived.wait()
            if self._waiting_tokens < self._budget and self.settings.batch_wait:
                await asyncio.sleep(self.settings.batch_wait)
            if taken := self._take():
                await self._pass(taken)

    def close(self) -> None:
        """Ends the threads once their work is done."""
        self._encoding.shutdown(wait=False, cancel_futures=True)
        self._engine.shutdown(wait=False, cancel_futures=True)

    def _admit(self) -> None:
        full = self._requests >= self.settings.queue_requests or self._waiting_tokens >= self.settings.queue_tokens
        if full:
            self.metrics.refused.inc()
            seconds = math.ceil(self._waiting_tokens / self._tokens_a_second)
            raise Overloaded(f"{self._requests} requests of {self._waiting_tokens} tokens", max(1, min(60, seconds)))

    def _encode(self, queries: Sequence[Query]) -> list[Encoded]:
        limit, encoded, tokens = self.settings.max_request_tokens, [], 0
        for query in queries:
            if query.task is not None:
                self.model.inner(query.task)
            encoded.append(self.model.encoder.encode(query))
            tokens += encoded[-1].tokens
            if tokens > limit:
                raise DataError(f"the request has more than {limit} tokens", hint="send it in several requests")
        return encoded

    async def _queue(self, queries: Sequence[Query], encoded: Sequence[Encoded], tokens: int) -> list[list[Score]]:
        parts = collections.deque(
            Part(i, first, piece, query.task)
            for i, (query, one) in enumerate(zip(queries, encoded, strict=True))
            for first, piece in pieces(one, self._budget)
        )
        done = asyncio.get_running_loop().create_future()
        job = Job(parts, [[None] * len(query.responses) for query in queries], done, open=len(parts))
        self._jobs.append(job)
        self._count(sum(part.encoded.tokens for part in parts))
        self._arrived.set()
        try:
            await done
        except asyncio.CancelledError:
            self.metrics.left.inc()
            raise
        finally:
            self._forget(job)
        return [[score for score in row if score is not None] for row in job.scores]

    def _forget(self, job: Job) -> None:
        """Takes out of the queue what is left of a job that has ended or whose client went away."""
        self._count(-sum(part.encoded.tokens for part in job.parts))
        job.parts.clear()
        with contextlib.suppress(ValueError):
            self._jobs.remove(job)

    def _count(self, tokens: int) -> None:
        self._waiting_tokens += tokens
        self.metrics.waiting_tokens.set(self._waiting_tokens)

    def _take(self) -> list[tuple[Job, Part]]:
        """The next pass: a part of each job in turn, as long as they fit."""
        taken: list[tuple[Job, Part]] = []
        tokens, now, room = 0, time.monotonic(), self._room()
        while self._jobs:
            job = self._jobs[0]
            if not job.parts:
                self._jobs.popleft()
                continue
            if taken and tokens + job.parts[0].encoded.tokens > room:
                break
            if len(job.parts) == job.open:
                self.metrics.queued.observe(now - job.arrived)
            part = job.parts.popleft()
            tokens += part.encoded.tokens
            taken.append((job, part))
            self._jobs.rotate(-1)
        if not self._jobs:
            self._arrived.clear()
        self._count(-tokens)
        return taken

    def _room(self) -> int:
        """Tokens of the next pass: of a short queue half, since whoever comes meanwhile waits for the pass under way.

        A request that is alone is not cut, nor is what is small beside a full pass.
        """
        if len(self._jobs) == 1:
            return self._budget
        return min(self._budget, max(self._waiting_tokens // 2, self._budget // 8))

    async def _pass(self, taken: Sequence[tuple[Job, Part]]) -> None:
        started = time.monotonic()
        try:
            scored = await asyncio.get_running_loop().run_in_executor(self._engine, self._score, [p for _, p in taken])
        except Exception as error:  # whatever the model or the device raises: the others' work goes on
            await self._fail(taken, error)
            return
        seconds, tokens = time.monotonic() - started, sum(part.encoded.tokens for _, part in taken)
        self.metrics.batch_tokens.observe(tokens)
        self.metrics.batch_seconds.observe(seconds)
        self._tokens_a_second = 0.9 * self._tokens_a_second + 0.1 * tokens / max(seconds, 1e-6)
        for (job, part), scores in zip(taken, scored, strict=True):
            self._settle(job, part, scores)

    def _score(self, parts: Sequence[Part]) -> list[list[Score]]:
        if self.settings.deterministic:
            return [self.model.score_separately(part.encoded, part.task) for part in parts]
        return self.model.score_encoded([part.encoded for part in parts], [part.task for part in parts])

    def _settle(self, job: Job, part: Part, scores: list[Score]) -> None:
        if all(math.isfinite(score.reward) for score in scores):
            self.metrics.scored(scores)
            job.take(part, scores)
        else:
            job.fail(ServerError("the model gave a reward that is no finite number; score the text alone to see why"))

    async def _fail(self, taken: Sequence[tuple[Job, Part]], error: Exception) -> None:
        """Scores the parts of a failed pass one by one, so that only what cannot be scored fails."""
        _LOG.error("a pass failed", extra={"error": type(error).__name__, "parts": len(taken)})
        if len(taken) > 1:
            for one in taken:
                await self._pass([one])
        else:
            ((job, _),) = taken
            job.fail(ServerError(f"the model failed: {type(error).__name__}"))
