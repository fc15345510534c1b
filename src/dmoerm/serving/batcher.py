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
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NoReturn

import torch

from ..chat.encoding import Encoded
from ..errors import DataError, ServerError
from ..model import DMoERM
from ..model.packing import chunks
from ..model.router import Known
from ..schema import Message, Query
from ..scores import Score, check_task
from .monitoring import Metrics
from .queue import Pass, QueuedPart, QueuedRequest, Throughput, WaitingLine
from .settings import Refusal, ServingConfig

Priority = Literal["interactive", "bulk"]
"""Interactive requests are scored before all bulk requests that wait."""

_LOG = logging.getLogger("dmoerm.serving")
_MAX_RETRY_AFTER = 120  # seconds


class PassTimeout(ServerError):
    """A pass has not ended in time. Its thread cannot be stopped, so the process must end."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a pass has not ended within {seconds:g} s, so the server ends; see --pass-timeout")


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
        """What scores the queries of a pass."""
        return self.model.score_separately if self.settings.deterministic else self.model.score_encoded

    @property
    def requests(self) -> int:
        """How many requests wait or are being scored."""
        return sum(line.requests for line in self.lines.values())

    @property
    def waiting_tokens(self) -> int:
        """How many tokens wait for a pass."""
        return sum(line.tokens for line in self.lines.values())

    async def score(self, queries: Sequence[Query], priority: Priority = "bulk") -> tuple[list[list[Score]], int]:
        """Score one request's queries; return the scores and the number of tokens.

        A cancelled call leaves the queue; only a part that is already in a pass is still scored.

        Raises:
            Refusal: the queue is full, or the request would wait for too long.
            DataError: a task is unknown, or a text or the request is too long.
            ServerError: the model fails, or gives a reward that is not finite.
        """
        responses, limit, line = sum(len(each.responses) for each in queries), self.settings, self.lines[priority]
        if responses > limit.max_responses:
            message = f"the request has {responses} responses; the limit is {limit.max_responses}"
            raise DataError(message, hint="send them in several requests")
        if not queries:
            return [], 0
        limits = (
            (line.requests, limit.queue_requests),
            (line.tokens, limit.queue_tokens),
            (line.bytes, limit.queue_bytes),
        )
        if any(value >= most for value, most in limits):
            self._refuse(priority)
        self._check_time(priority, 0)
        with line.counted(requests=1):
            with line.counted(size=sum(len(query.model_dump_json().encode()) for query in queries)):
                encoded = await asyncio.get_running_loop().run_in_executor(self._tokenizer, self._encode, queries)
            tokens = sum(each.tokens for each in encoded)
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
            Refusal: too many bytes wait to be tokenized.
        """
        line, encoder = self.lines["bulk"], self.model.encoder
        if line.bytes >= self.settings.queue_bytes:
            self._refuse("bulk")
        texts = [content] if isinstance(content, str) else [message.model_dump_json() for message in content]
        with line.counted(size=sum(len(text.encode()) for text in texts)):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._tokenizer, encoder.tokens, content, add_special)

    def warm(self, query: Query) -> None:
        """Score a query twice: the first pass selects kernels, the second one is measured."""
        encoded = [self.model.encoder.encode(query)]
        self._engine.submit(self._run_pass, encoded, [None]).result()
        with self.throughput.measured(encoded[0].tokens):
            self._engine.submit(self._run_pass, encoded, [None]).result()

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
                groups = _by_prompt(taken)
                encoded = [Encoded.join([part.encoded for _, part in group]) for group in groups]
                tasks, started = [group[0][1].task for group in groups], time.monotonic()
                try:
                    with self.throughput.measured(sum(each.tokens for each in encoded)):
                        running = loop.run_in_executor(self._engine, self._run_pass, encoded, tasks)
                        if not (await asyncio.wait([running], timeout=settings.pass_timeout))[0]:
                            raise PassTimeout(settings.pass_timeout)
                        rows = running.result()
                except PassTimeout:
                    raise
                except Exception as error:  # whatever the model or the device raises: other requests continue
                    self._handle_failure(taken, error)
                    continue
                self.metrics.batch_tokens.observe(sum(each.tokens for each in encoded))
                self.metrics.batch_seconds.observe(time.monotonic() - started)
                self._give(groups, rows)
        except Exception:
            self._ended = ServerError("the server cannot score any more; see its log")
            for line in self.lines.values():
                line.fail(self._ended)
            raise

    def close(self) -> None:
        """End the threads once their current work is done."""
        for thread in self._engine, self._tokenizer:
            thread.shutdown(wait=False, cancel_futures=True)

    # --- requests ----------------------------------------------------------------------------------------------

    def _check_time(self, priority: Priority, tokens: int) -> None:
        """Refuse this request if it would wait for too long; never if no other request waits."""
        ahead = self._tokens_ahead(priority)
        if ahead and self.throughput.seconds_for(ahead + tokens) > self.settings.queue_seconds:
            self._refuse(priority)

    def _tokens_ahead(self, priority: Priority) -> int:
        """Return the waiting tokens that are scored before or in turn with a request of this priority."""
        return self.lines["interactive"].tokens if priority == "interactive" else self.waiting_tokens

    def _refuse(self, priority: Priority) -> NoReturn:
        self.metrics.refused.inc()
        line, seconds = self.lines[priority], self.throughput.seconds_for(self._tokens_ahead(priority))
        pause = max(1, min(_MAX_RETRY_AFTER, math.ceil(seconds / 2)))  # the queue is half empty by then
        message = (
            f"the queue is full ({line.requests} requests, {line.tokens} tokens, {line.bytes} bytes to tokenize, "
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
        if self._alone:
            taken = self._alone.popleft()
        else:
            line = self.lines["interactive"] if self.lines["interactive"].tokens else self.lines["bulk"]
            taken = line.take(self._pass_limit(line), self.budget, self.throughput.rate)
        now = time.monotonic()
        for request in {request for request, _ in taken if not request.started}:
            request.started = True
            self.metrics.queued.observe(now - request.arrived)
        if not self.waiting_tokens and not self._alone:
            self._arrived.clear()
        return [(request, request.as_routed(part)) for request, part in taken if not request.done.done()]

    def _pass_limit(self, line: WaitingLine) -> int:
        """Tokens of the next pass: half of a short queue, since requests that arrive in the meantime wait for the pass.

        A single request is not split, nor is a queue that is small compared with a full pass. No pass of several
        requests takes much longer than `pass_seconds`.
        """
        limit = self.budget if len(line) == 1 else min(self.budget, max(line.tokens // 2, self.budget // 8))
        rate = self.throughput.rate
        return limit if rate is None else min(limit, max(1, int(rate * self.settings.pass_seconds)))

    def _give(self, groups: Sequence[Pass], rows: Sequence[Sequence[Score]]) -> None:
        """Give the requests the scores of a pass."""
        for group, row in zip(groups, rows, strict=True):
            rest = iter(row)
            for request, part in group:
                scores = list(itertools.islice(rest, len(part.encoded.responses)))
                first = request.routed.get((part.query, part.encoded.prompt_key))
                if first is not None and any(score.task != first.task for score in scores):
                    # another part of this pass has the same prompt and was routed otherwise: score it again, as routed
                    for line in self.lines.values():
                        line.put_back(request, request.as_routed(part))
                    self._arrived.set()
                elif all(math.isfinite(score.reward) for score in scores):
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
        out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if isinstance(error, getattr(torch, "AcceleratorError", ())) and not out_of_memory:
            raise error
        if out_of_memory:
            torch.cuda.empty_cache()
        if len(taken) > 1:
            self._alone.extend([each] for each in taken)
            self._arrived.set()
        elif out_of_memory:
            message = "the device is out of memory; send shorter texts, or start the server with a lower --batch-tokens"
            taken[0][0].fail(ServerError(message))
        else:
            taken[0][0].fail(ServerError(f"the model failed: {type(error).__name__}"))


def _by_prompt(taken: Pass) -> list[list[tuple[QueuedRequest, QueuedPart]]]:
    """Group the parts of a pass by what they must have in common to share a prompt."""
    groups: dict[tuple[str | Known | None, str], list[tuple[QueuedRequest, QueuedPart]]] = {}
    for request, part in taken:
        groups.setdefault(part.prompt, []).append((request, part))
    return list(groups.values())
