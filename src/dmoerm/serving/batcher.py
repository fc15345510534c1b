"""Score requests of several clients together.

    request ──▶ encode (a thread) ──▶ queue ──▶ passes of at most `batch_tokens` tokens (a thread) ──▶ scores

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import torch

from ..chat.encoding import Encoded
from ..errors import DataError, ServerError
from ..model import DMoERM
from ..model.packing import chunks
from ..model.router import Known
from ..schema import Message, Query
from ..scores import Score, check_task
from .monitoring import REQUEST_ID, Metrics
from .settings import Refusal, ServingConfig

Priority = Literal["interactive", "bulk"]
"""Interactive requests are scored before all bulk requests that wait."""

Prefix = tuple[str | Known | None, str]
"""What parts must have in common to share a prompt: the task and a digest of the prompt's token ids."""

_LOG = logging.getLogger("dmoerm.serving")
_MAX_RETRY_AFTER = 120  # seconds
_HANDICAP = 8.0  # a part goes ahead of those that arrived up to this many of their own durations before it
_HALF_LIFE = 30.0  # seconds of passes after which a measurement counts half


class PassTimeout(ServerError):
    """A pass has not ended in time. Its thread cannot be stopped, so the process must end."""


# --- what waits ----------------------------------------------------------------------------------------------------


class QueuedPart(NamedTuple):
    """Consecutive responses to one query's prompt, which run in the same pass.

    Attributes:
        query, first: the query's index in the request, and its first response's index in the query.
    """

    query: int
    first: int
    encoded: Encoded
    task: str | Known | None

    @property
    def prefix(self) -> Prefix:
        """The part's task and prompt."""
        return self.task, self.encoded.prompt_key


class QueuedRequest:
    """A request in the queue: its waiting parts, and the scores it has so far.

    Attributes:
        done: is set once all scores are there, or by an error.
        parts: what waits; empty until the request is encoded.
        turn: the sort key of waiting requests: the time of arrival, then the time when a pass last took a part.
        routed: query and digest of its prompt, whole or cut → a score of the prompt, whose route holds for all.
    """

    def __init__(self, queries: Sequence[Query]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parts: collections.deque[QueuedPart] = collections.deque()
        self.scores: list[list[Score | None]] = [[None] * len(query.responses) for query in queries]
        self.arrived = self.turn = time.monotonic()
        self.started, self.id = False, REQUEST_ID.get()
        self.routed: dict[tuple[int, str], Score] = {}

    def add(self, part: QueuedPart, scores: Sequence[Score]) -> None:
        """Store a part's scores; the last part completes the request."""
        self.scores[part.query][part.first : part.first + len(scores)] = scores
        self.routed.setdefault((part.query, part.encoded.prompt_key), scores[0])
        if not self.done.done() and all(score is not None for row in self.scores for score in row):
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the request by an error; its other parts leave the queue with it."""
        if not self.done.done():
            self.done.set_exception(error)


Pass = Sequence[tuple[QueuedRequest, QueuedPart]]


class WaitingLine:
    """The requests of one priority. A pass takes one part of each in turn; see `take`.

    Attributes:
        requests: those that are encoded, wait or are being scored, in the order of arrival.
        tokens: how many tokens wait for a pass.
        bytes: how many bytes of requests wait to be tokenized, or are being tokenized.
    """

    def __init__(self) -> None:
        self.requests: list[QueuedRequest] = []
        self.tokens = self.bytes = 0

    def waiting(self) -> list[QueuedRequest]:
        """Return the requests of which a part waits."""
        return [request for request in self.requests if request.parts]

    def add(self, request: QueuedRequest, parts: Iterable[QueuedPart]) -> None:
        """Let the parts of a request wait."""
        request.parts.extend(parts)
        self.tokens += sum(part.encoded.tokens for part in request.parts)

    def remove(self, request: QueuedRequest) -> None:
        """Remove what is left of a request that has ended or whose client has disconnected."""
        self.requests.remove(request)
        self.tokens -= sum(part.encoded.tokens for part in request.parts)
        request.parts.clear()

    @contextlib.contextmanager
    def tokenizing(self, size: int) -> Iterator[None]:
        """Count bytes as not tokenized for the duration of the block."""
        self.bytes += size
        try:
            yield
        finally:
            self.bytes -= size

    def take(self, limit: int, most: int, rate: float | None = None) -> Pass:
        """Remove and return the parts of the next pass: at most `limit` tokens, or a single part that is longer.

        Parts are taken in the order of arrival, but a part waits for `_HANDICAP` times its own duration if others are
        shorter: eight long texts delay a short one by a pass, and no text waits without end.

        A prompt that several parts share counts once. Parts that share it may exceed the limit by its length, since
        passes of their own would run it again.

        Args:
            most: the maximum number of tokens of a pass of several parts.
            rate: tokens per second of a pass; without it, parts are taken in the order of arrival.
        """
        taken: list[tuple[QueuedRequest, QueuedPart]] = []
        prefixes: set[Prefix] = set()
        tokens = 0
        for request in self._in_turn(rate):
            part = request.parts[0]
            shared = len(part.encoded.prompt) if part.prefix in prefixes else 0
            tokens += part.encoded.tokens - shared
            # a long part would delay those that have overtaken it, and are to be scored before it
            overtaken = taken and 2 * (part.encoded.tokens - shared) > limit and request.turn < taken[0][0].turn
            if taken and (overtaken or tokens > min(limit + shared, max(limit, most))):
                break
            taken.append((request, request.parts.popleft()))
            prefixes.add(part.prefix)
            if request.parts:
                request.turn = time.monotonic()
        self.tokens -= sum(part.encoded.tokens for _, part in taken)
        return taken

    def _in_turn(self, rate: float | None) -> Iterator[QueuedRequest]:
        """Yield the waiting requests by their turn, each followed by those with the same prompt; then again."""
        handicap = _HANDICAP / rate if rate else 0.0
        while waiting := self.waiting():
            by_prefix: dict[Prefix, list[QueuedRequest]] = {}
            for request in sorted(waiting, key=lambda each: each.turn + handicap * each.parts[0].encoded.tokens):
                by_prefix.setdefault(request.parts[0].prefix, []).append(request)
            yield from itertools.chain.from_iterable(by_prefix.values())


class Throughput:
    """The measured rate: tokens per second over the recent passes, in which large passes count more than small ones.

    Attributes:
        rate: tokens per second; None before the first pass.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._tokens = self._seconds = 0.0
        self._running = (0, 0.0)  # tokens and start of the running pass

    @contextlib.contextmanager
    def measured(self, tokens: int) -> Iterator[None]:
        """Measure the pass that the block runs; a pass that fails does not count."""
        started = time.monotonic()
        self._running = tokens, started
        try:
            yield
            self.add(tokens, time.monotonic() - started)
        finally:
            self._running = (0, 0.0)

    def add(self, tokens: int, seconds: float) -> None:
        """Count a pass."""
        kept = 0.5 ** (seconds / _HALF_LIFE)
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + max(seconds, 1e-6)
        self.rate = self._tokens / self._seconds

    def seconds_for(self, tokens: int) -> float:
        """Return the expected seconds until these tokens are scored after the running pass; 0 before any pass."""
        if self.rate is None:
            return 0.0
        size, started = self._running
        return max(0.0, size / self.rate - (time.monotonic() - started)) + tokens / self.rate


# --- the queue -----------------------------------------------------------------------------------------------------


class Batcher:
    """The queue of one model. `score` returns only while `run` is running."""

    def __init__(self, model: DMoERM, settings: ServingConfig, metrics: Metrics) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        self.budget = model.pass_tokens(settings.batch_tokens)
        self.throughput = Throughput()
        self.lines: dict[Priority, WaitingLine] = {"interactive": WaitingLine(), "bulk": WaitingLine()}
        self._alone: collections.deque[Pass] = collections.deque()  # the parts of a pass that failed, each by itself
        self._arrived = asyncio.Event()
        self._ended: ServerError | None = None  # set once `run` has ended by an error
        self._engine, self._tokenizer = ThreadPoolExecutor(1, "engine"), ThreadPoolExecutor(1, "tokenize")
        metrics.queue_requests.set_function(lambda: self.requests)
        metrics.queue_tokens.set_function(lambda: self.waiting_tokens)
        metrics.queue_expected.set_function(lambda: self.throughput.seconds_for(self.waiting_tokens))
        metrics.rate.set_function(lambda: self.throughput.rate or 0.0)

    @property
    def _run_pass(self) -> Callable[[Sequence[Encoded], Sequence[str | Known | None]], list[list[Score]]]:
        """The model's function that scores the queries of a pass."""
        return self.model.score_separately if self.settings.deterministic else self.model.score_encoded

    @property
    def requests(self) -> int:
        """How many requests wait or are being scored."""
        return sum(len(line.requests) for line in self.lines.values())

    @property
    def waiting_tokens(self) -> int:
        """How many tokens wait for a pass."""
        return sum(line.tokens for line in self.lines.values())

    def close(self) -> None:
        """End the threads once their current work is done."""
        for thread in self._engine, self._tokenizer:
            thread.shutdown(wait=False, cancel_futures=True)

    def warm(self, query: Query) -> None:
        """Score a query twice: the first pass selects kernels, the second one is measured."""
        encoded = [self.model.encoder.encode(query)]
        self._engine.submit(self._run_pass, encoded, [None]).result()
        with self.throughput.measured(encoded[0].tokens):
            self._engine.submit(self._run_pass, encoded, [None]).result()

    # --- requests ----------------------------------------------------------------------------------------------

    async def score(self, queries: Sequence[Query], priority: Priority = "bulk") -> tuple[list[list[Score]], int]:
        """Score one request's queries; return the scores and the number of tokens.

        A cancelled call leaves the queue; only a part that is already in a pass is still scored.

        Raises:
            Refusal: the queue is full, or the request would wait for too long.
            DataError: a task is unknown, or a text or the request is too long.
            ServerError: the model fails, or gives a reward that is not finite.
        """
        responses, limit, line = sum(len(query.responses) for query in queries), self.settings, self.lines[priority]
        if responses > limit.max_responses:
            message = f"the request has {responses} responses; the limit is {limit.max_responses}"
            raise DataError(message, hint="send them in several requests")
        if not queries:
            return [], 0
        if self._ended:
            raise self._ended
        full = len(line.requests) >= limit.queue_requests or line.tokens >= limit.queue_tokens
        self._admit(priority, full=full or line.bytes >= limit.queue_bytes)
        request = QueuedRequest(queries)
        line.requests.append(request)
        try:
            with line.tokenizing(sum(len(query.model_dump_json().encode()) for query in queries)):
                encoded = await asyncio.get_running_loop().run_in_executor(self._tokenizer, self._encode, queries)
            tokens = sum(each.tokens for each in encoded)
            if not request.done.done():  # else `run` has ended in the meantime
                self._admit(priority, tokens)  # others may have entered the queue during the encoding
                split = zip(queries, (chunks(ids, self.budget) for ids in encoded), strict=True)
                parts = (QueuedPart(i, *part, query.task) for i, (query, ps) in enumerate(split) for part in ps)
                line.add(request, parts)
                self._arrived.set()
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
            Refusal: too many bytes wait to be tokenized.
        """
        line, encoder = self.lines["bulk"], self.model.encoder
        if line.bytes >= self.settings.queue_bytes:
            self._admit("bulk", full=True)
        texts = [content] if isinstance(content, str) else [message.model_dump_json() for message in content]
        with line.tokenizing(sum(len(text.encode()) for text in texts)):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._tokenizer, encoder.tokens, content, add_special)

    def _admit(self, priority: Priority, tokens: int = 0, full: bool = False) -> None:
        """Refuse a request if its line is full, or if it would wait for too long; never if no other request waits."""
        line, seconds_for = self.lines[priority], self.throughput.seconds_for
        ahead = line.tokens if priority == "interactive" else self.waiting_tokens
        if not full and not (ahead and seconds_for(ahead + tokens) > self.settings.queue_seconds):
            return
        self.metrics.refused.inc()
        seconds = seconds_for(ahead)
        pause = max(1, min(_MAX_RETRY_AFTER, math.ceil(seconds / 2)))  # the queue is half empty by then
        message = (
            f"the queue is full ({len(line.requests)} requests, {line.tokens} tokens, {line.bytes} bytes to tokenize, "
            f"about {seconds:.0f} s); try again in {pause} s"
        )
        raise Refusal(self.settings.overload_status, message, "overloaded_error", {"Retry-After": str(pause)})

    def _encode(self, queries: Sequence[Query]) -> list[Encoded]:
        """Encode the queries of one request; runs in the tokenizer's thread."""
        encoded, tokens, limit = [], 0, self.settings.max_request_tokens
        for query in queries:
            if query.task is not None:
                check_task(self.model.config.tasks, query.task)
            encoded.append(self.model.encoder.encode(query, one_prompt=False))
            tokens += encoded[-1].tokens
            if tokens > limit:
                raise DataError(f"the request has more than {limit} tokens", hint="send it in several requests")
        return encoded

    # --- passes ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Score waiting requests, pass by pass, until cancelled.

        If it ends by an error, requests that wait, and later ones, get a `ServerError`.
        """
        loop, settings = asyncio.get_running_loop(), self.settings
        try:
            while True:
                await self._arrived.wait()
                if self.waiting_tokens < self.budget and settings.batch_wait:
                    await asyncio.sleep(settings.batch_wait)
                if not (taken := self._next_pass()):
                    continue
                by_prefix: dict[Prefix, list[tuple[QueuedRequest, QueuedPart]]] = {}
                for request, part in taken:
                    by_prefix.setdefault(part.prefix, []).append((request, part))
                groups, tasks, started = [*by_prefix.values()], [task for task, _ in by_prefix], time.monotonic()
                encoded = [Encoded.join([part.encoded for _, part in group]) for group in groups]
                tokens = sum(each.tokens for each in encoded)
                try:
                    with self.throughput.measured(tokens):
                        running = loop.run_in_executor(self._engine, self._run_pass, encoded, tasks)
                        if not (await asyncio.wait([running], timeout=settings.pass_timeout))[0]:
                            limit = f"{settings.pass_timeout:g} s, so the server ends; see --pass-timeout"
                            raise PassTimeout(f"a pass has not ended within {limit}")
                        rows = running.result()
                except PassTimeout:
                    raise
                except Exception as error:  # whatever the model or the device raises: other requests continue
                    self._handle_failure(taken, error)
                    continue
                self.metrics.batch_tokens.observe(tokens)
                self.metrics.batch_seconds.observe(time.monotonic() - started)
                self._give(groups, rows)
        except Exception:
            self._ended = ServerError("the server cannot score any more; see its log")
            for request in itertools.chain.from_iterable(line.requests for line in self.lines.values()):
                request.fail(self._ended)
            raise

    def _next_pass(self) -> Pass:
        """Take the next pass from the interactive line, or from the other one if it is empty.

        A pass has half of a short queue, since requests that arrive in the meantime wait for it. A single request is
        not split, nor is a queue that is small compared with a full pass. No pass of several requests takes much
        longer than `pass_seconds`.
        """
        if self._alone:
            taken = self._alone.popleft()
        else:
            line = self.lines["interactive"] if self.lines["interactive"].tokens else self.lines["bulk"]
            rate, limit = self.throughput.rate, self.budget
            if len(line.waiting()) > 1:
                limit = min(limit, max(line.tokens // 2, limit // 8))
            if rate is not None:
                limit = min(limit, max(1, int(rate * self.settings.pass_seconds)))
            taken = line.take(limit, self.budget, rate)
        now = time.monotonic()
        for request in {request for request, _ in taken if not request.started}:
            request.started = True
            self.metrics.queued.observe(now - request.arrived)
        if not self.waiting_tokens and not self._alone:
            self._arrived.clear()
        routed: list[tuple[QueuedRequest, QueuedPart]] = []
        for request, part in taken:
            score = request.routed.get((part.query, part.encoded.prompt_key))
            if score is not None and not isinstance(part.task, Known):  # the first part's route holds for all
                part = part._replace(task=Known(part.task, tuple(score.route.values())))
            if not request.done.done():
                routed.append((request, part))
        return routed

    def _give(self, groups: Sequence[Pass], rows: Sequence[Sequence[Score]]) -> None:
        """Give the requests the scores of a pass."""
        for group, row in zip(groups, rows, strict=True):
            rest = iter(row)
            for request, part in group:
                scores = list(itertools.islice(rest, len(part.encoded.responses)))
                if all(math.isfinite(score.reward) for score in scores):
                    self.metrics.scored(scores)
                    request.add(part, scores)
                else:
                    request.fail(ServerError("the model returned a reward that is not finite; score the text alone"))

    def _handle_failure(self, taken: Pass, error: Exception) -> None:
        """Let the parts of a failed pass run one by one, so that only the part at fault fails.

        Raises the error again if the device fails all later work of the process too, such as after an illegal access.
        """
        ids = [request.id for request, _ in taken]
        _LOG.error("a pass failed", extra={"error": type(error).__name__, "requests": ids})
        message = f"the model failed: {type(error).__name__}"
        if isinstance(error, torch.OutOfMemoryError):
            message = "the device is out of memory; send shorter texts, or start the server with a lower --batch-tokens"
            torch.cuda.empty_cache()
        elif isinstance(error, getattr(torch, "AcceleratorError", ())):
            raise error
        if len(taken) > 1:
            self._alone.extend([each] for each in taken)
            self._arrived.set()
        else:
            taken[0][0].fail(ServerError(message))
