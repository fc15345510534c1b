"""Score requests of several clients together.

    request ──▶ encode (threads) ──▶ queue ──▶ passes of at most `batch_tokens` tokens, one per engine ──▶ scores

A request is split into parts that fit in a pass; each part repeats the prompt. A pass takes one part of each waiting
request in turn, the oldest first but short ones before long ones, so large requests delay small ones only a little.
Requests with the same prompt, as trainers send them that score one response at a time, share a pass, in which the
prompt runs once. What shares a pass changes rewards by rounding only; `ServingConfig.deterministic` removes that too.
All responses to a query's prompt are scored as the same task, also where its route is so close to a tie that rounding
decides.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Sequence
from typing import Literal, NoReturn

import torch

from ..chat.encoding import Encoded
from ..errors import ServerError
from ..model import DMoERM
from ..model.batching import chunks
from ..model.routing import Known
from ..schema import Message, Query
from ..scores import Score
from .encoding_threads import EncodingThreads
from .engines import Engine, EngineLost, ServedModel, ThreadEngine, has_lost_device
from .limits import ServingConfig
from .metrics import Metrics
from .tracing import TRACE
from .waiting import Pass, QueuedPart, QueuedRequest, Throughput, WaitingLine

Priority = Literal["interactive", "bulk"]
"""Interactive requests are scored before all bulk requests that wait."""

_LOG = logging.getLogger("dmoerm.serving")
_MAX_RETRY_AFTER = 120  # seconds
_IDLE_CHECK = 1.0  # seconds


class Overloaded(ServerError):
    """The queue is full.

    Attributes:
        retry_after: seconds until the queue may have space.
    """

    def __init__(self, line: WaitingLine, seconds: float) -> None:
        self.retry_after = max(1, min(_MAX_RETRY_AFTER, math.ceil(seconds / 2)))  # the queue is half empty by then
        super().__init__(
            f"the queue is full ({line.requests} requests, {line.tokens} tokens, {line.bytes} bytes to tokenize, "
            f"about {seconds:.0f} s); try again in {self.retry_after} s"
        )


class PassTimeout(ServerError):
    """A pass has not ended in time. Its thread cannot be stopped, so the process must end."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a pass has not ended within {seconds:g} s, so the server ends; see --pass-timeout")


class Batcher:
    """The queue of one model. `score` returns only while `run` is running.

    Args:
        engines: what runs the passes; None: the model in a thread.
    """

    def __init__(
        self,
        model: DMoERM | ServedModel,
        settings: ServingConfig,
        metrics: Metrics,
        engines: Sequence[Engine] | None = None,
    ) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        if isinstance(model, DMoERM):
            engines = engines or [ThreadEngine(model, settings)]
            self.budget = model.pass_tokens(settings.batch_tokens)
        else:
            self.budget = model.pass_limit
        self.engines = list(engines or ())
        self.throughput = Throughput(len(self.engines))
        self.lines: dict[Priority, WaitingLine] = {"interactive": WaitingLine(), "bulk": WaitingLine()}
        metrics.watch(self)
        self._arrived = asyncio.Event()
        self._ended: ServerError | None = None  # set once `run` has ended by an error
        self._encoding = EncodingThreads(model.encoder, model.config.tasks, settings)

    @property
    def requests(self) -> int:
        """How many requests wait or are being scored."""
        return sum(line.requests for line in self.lines.values())

    @property
    def waiting_tokens(self) -> int:
        """How many tokens wait for a pass."""
        return sum(line.tokens for line in self.lines.values())

    def expected_seconds(self) -> float:
        """Return the estimated time in which the engine scores all that waits."""
        return self.throughput.seconds_for(self.waiting_tokens)

    async def score(self, queries: Sequence[Query], priority: Priority = "bulk") -> tuple[list[list[Score]], int]:
        """Score one request's queries; return the scores and the number of tokens.

        A cancelled call leaves the queue; only a part that is already in a pass is still scored.

        Raises:
            Overloaded: the queue is full, or the request would wait for too long.
            DataError: a task is unknown, or a text or the request is too long.
            ServerError: the model fails, or gives a reward that is not finite.
        """
        if not queries:
            return [], 0
        line = self.lines[priority]
        self._check_space(priority)
        with line.admitted():
            arrived = time.monotonic()
            with line.tokenizing(sum(len(query.model_dump_json().encode()) for query in queries)):
                encoded = await self._encoding.encode(queries)
            tokens = sum(each.tokens for each in encoded)
            if trace := TRACE.get():
                trace.add("encode", arrived, tokens=tokens)
            if self._ended:
                raise self._ended
            self._check_time(priority, tokens)  # others may have entered the queue during the encoding
            request = self._request(queries, encoded)
            line.append(request)
            self._arrived.set()
            try:
                await request.done
            except asyncio.CancelledError:
                self.metrics.left.inc()
                raise
            finally:
                line.remove(request)
        return [[score for score in row if score is not None] for row in request.scores], tokens

    async def tokens(self, content: str | Sequence[Message], add_special: bool) -> list[int]:
        """Return the token ids as `Encoder.tokens` does.

        Raises:
            Overloaded: too many bytes wait to be tokenized.
        """
        line = self.lines["bulk"]
        if line.bytes >= self.settings.queue_bytes:
            self._refuse("bulk")
        texts = [content] if isinstance(content, str) else [message.model_dump_json() for message in content]
        with line.tokenizing(sum(len(text.encode()) for text in texts)):
            return await self._encoding.tokens(content, add_special)

    def warm(self, query: Query) -> None:
        """Score a query on each engine: the first pass selects kernels, the second one is measured."""
        encoded = [self.model.encoder.encode(query)]
        for engine in self.engines:
            engine.thread.submit(engine.run, encoded, [None]).result()
            with self.throughput.measured(encoded[0].tokens):
                engine.thread.submit(engine.run, encoded, [None]).result()

    async def run(self) -> None:
        """Score waiting requests, pass by pass and each engine its own, until cancelled.

        If it ends by an error, requests that wait, and later ones, get a `ServerError`.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for engine in self.engines:
                    group.create_task(self._run_passes(engine))
        except Exception:
            self._ended = ServerError("the server cannot score any more; see its log")
            for line in self.lines.values():
                line.fail(self._ended)
            raise

    async def _run_passes(self, engine: Engine) -> None:
        while True:
            with contextlib.suppress(TimeoutError):  # an engine that ends while it idles is noticed, and started again
                await asyncio.wait_for(self._arrived.wait(), _IDLE_CHECK)
            await engine.ready()
            if not self._arrived.is_set():
                continue
            if self.waiting_tokens < self.budget and self.settings.batch_wait:
                await asyncio.sleep(self.settings.batch_wait)
            if parts := self._next_pass():
                await self._run_pass(engine, parts)

    def close(self) -> None:
        """End the threads and the engines once their current work is done."""
        self.metrics.forget(self)
        self._encoding.close()
        for engine in self.engines:
            engine.close()

    # --- requests ----------------------------------------------------------------------------------------------

    def _check_space(self, priority: Priority) -> None:
        """Raise `Overloaded` if the line is full, before anything is encoded."""
        line, settings = self.lines[priority], self.settings
        limits = settings.queue_requests, settings.queue_tokens, settings.queue_bytes
        if any(value >= limit for value, limit in zip((line.requests, line.tokens, line.bytes), limits, strict=True)):
            self._refuse(priority)
        self._check_time(priority, 0)

    def _check_time(self, priority: Priority, tokens: int) -> None:
        """Raise `Overloaded` if this request would wait for too long; never if no other request waits."""
        ahead = self._tokens_ahead(priority)
        if ahead and self.throughput.seconds_for(ahead + tokens) > self.settings.queue_seconds:
            self._refuse(priority)

    def _tokens_ahead(self, priority: Priority) -> int:
        """Return the waiting tokens that are scored before or in turn with a request of this priority."""
        return self.lines["interactive"].tokens if priority == "interactive" else self.waiting_tokens

    def _refuse(self, priority: Priority) -> NoReturn:
        self.metrics.refused.inc()
        raise Overloaded(self.lines[priority], self.throughput.seconds_for(self._tokens_ahead(priority)))

    def _request(self, queries: Sequence[Query], encoded: Sequence[Encoded]) -> QueuedRequest:
        parts = collections.deque(
            QueuedPart(index, first, part, query.task)
            for index, (query, ids) in enumerate(zip(queries, encoded, strict=True))
            for first, part in chunks(ids, self.budget)
        )
        scores: list[list[Score | None]] = [[None] * len(query.responses) for query in queries]
        request = QueuedRequest(parts, scores, asyncio.get_running_loop().create_future(), open=len(parts))
        if not parts:
            request.done.set_result(None)
        return request

    # --- passes ------------------------------------------------------------------------------------------------

    def _next_pass(self) -> Pass:
        """Take the next pass from the interactive line, or from the other one if it is empty."""
        line = self.lines["interactive"] if self.lines["interactive"].tokens else self.lines["bulk"]
        taken = line.take(self._pass_limit(line), self.budget, self.throughput.rate)
        now = time.monotonic()
        for request in {request for request, _ in taken if not request.started}:
            request.started = True
            self.metrics.queued.observe(now - request.arrived)
            if request.trace:
                request.trace.add("queue", request.arrived)
        if not self.waiting_tokens:
            self._arrived.clear()
        return taken

    def _pass_limit(self, line: WaitingLine) -> int:
        """Tokens of the next pass: an engine's share of a short queue, or half of it with one engine, since requests
        that arrive in the meantime wait for the pass.

        A single request is not split, nor is a queue that is small compared with a full pass. No pass of several
        requests takes much longer than `pass_seconds`.
        """
        limit = min(self.budget, max(line.tokens // max(2, len(self.engines)), self.budget // 8))
        if len(line) == 1:
            limit = self.budget
        rate = self.throughput.rate
        return limit if rate is None else min(limit, max(1, int(rate * self.settings.pass_seconds)))

    async def _run_pass(self, engine: Engine, taken: Pass) -> None:
        started, loop = time.monotonic(), asyncio.get_running_loop()
        by_prompt: dict[tuple[str | Known | None, str], list[tuple[QueuedRequest, QueuedPart]]] = {}
        for request, waiting in taken:
            part = request.as_routed(waiting)
            by_prompt.setdefault(part.prompt, []).append((request, part))
        encoded = [Encoded.join([part.encoded for _, part in group]) for group in by_prompt.values()]
        tokens = sum(each.tokens for each in encoded)
        try:
            with self.throughput.measured(tokens) as measurement:
                starts = engine.starts
                running = loop.run_in_executor(engine.thread, engine.run, encoded, [task for task, _ in by_prompt])
                if not (await asyncio.wait([running], timeout=self.settings.pass_timeout))[0]:
                    raise PassTimeout(self.settings.pass_timeout)
                rows = running.result()
                measurement.counts = engine.starts == starts  # it does not if the pass waited for a restart
        except PassTimeout:
            raise
        except Exception as error:  # whatever the model or the device raises: other requests continue
            await self._handle_failure(engine, taken, error)
            return
        self.metrics.batch_tokens.observe(tokens)
        self.metrics.batch_seconds.observe(time.monotonic() - started)
        for trace in {request.trace for request, _ in taken if request.trace is not None}:
            trace.add("pass", started, pass_tokens=tokens, pass_requests=len({id(request) for request, _ in taken}))
        for group, row in zip(by_prompt.values(), rows, strict=True):
            scores = iter(row)
            for request, part in group:
                self._answer(request, part, list(itertools.islice(scores, len(part.encoded.responses))))

    def _answer(self, request: QueuedRequest, part: QueuedPart, scores: list[Score]) -> None:
        """Give a request the scores of one of its parts, or score the part again by the route of the query's others."""
        first = request.routed.get((part.query, part.encoded.prompt_key))
        if first is not None and any(score.task != first.task for score in scores):  # in a pass at the same time
            for line in self.lines.values():
                line.put_back(request, request.as_routed(part))
            self._arrived.set()
        elif all(math.isfinite(score.reward) for score in scores):
            self.metrics.scored(scores)
            request.add(part, scores)
        else:
            request.fail(ServerError("the model returned a reward that is not finite; score the text alone"))

    async def _handle_failure(self, engine: Engine, taken: Pass, error: Exception) -> None:
        """Score the parts of a failed pass one by one, so that only the part at fault fails."""
        _LOG.error(
            "a pass failed", extra={"error": type(error).__name__, "requests": [request.id for request, _ in taken]}
        )
        if has_lost_device(error) and not engine.restarts:
            raise error
        if len(taken) > 1:
            for part in taken:
                await self._run_pass(engine, [part])
        else:
            ((request, _),) = taken
            request.fail(ServerError(_reason(error)))


def _reason(error: Exception) -> str:
    if isinstance(error, EngineLost):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "the device is out of memory; send shorter texts, or start the server with a lower --batch-tokens"
    return f"the model failed: {type(error).__name__}"
