"""What waits for a pass: requests, their parts, and how long the model will need for them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..chat.encoding import Encoded
from ..model.router import Known
from ..scores import Score
from .monitoring import REQUEST_ID

_HANDICAP = 8.0  # a part goes ahead of those that arrived up to this many of their own durations before it
_HALF_LIFE = 30.0  # seconds of passes after which a measurement counts half


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
    def prompt(self) -> tuple[str | Known | None, str]:
        """What parts must have in common to share a prompt: the task and the prompt's token ids."""
        return self.task, self.encoded.prompt_key


@dataclass(eq=False)
class QueuedRequest:
    """A request in the queue: its waiting parts, and the scores it has so far.

    Attributes:
        done: is set once all scores are there, or by an error.
        open: how many parts have no scores yet.
        turn: the time by which requests are ordered: of the arrival, then of the last part that was taken.
        started: whether a pass has taken a part.
        routed: query and digest of its prompt, whole or cut → a score of the prompt, whose route holds for all.
        id: the HTTP request's id.
    """

    parts: collections.deque[QueuedPart]
    scores: list[list[Score | None]]
    done: asyncio.Future[None]
    open: int
    arrived: float = field(default_factory=time.monotonic)
    turn: float = field(default_factory=time.monotonic)
    started: bool = False
    routed: dict[tuple[int, str], Score] = field(default_factory=dict)
    id: str = field(default_factory=REQUEST_ID.get)

    @property
    def waiting_tokens(self) -> int:
        """The tokens of the parts that wait."""
        return sum(part.encoded.tokens for part in self.parts)

    def as_routed(self, part: QueuedPart) -> QueuedPart:
        """Return the part with the route of another part with the same prompt, if one has been scored."""
        score = self.routed.get((part.query, part.encoded.prompt_key))
        if score is None or isinstance(part.task, Known):
            return part
        return part._replace(task=Known(part.task, tuple(score.route.values())))

    def add(self, part: QueuedPart, scores: Sequence[Score]) -> None:
        """Store a part's scores; the last part completes the request."""
        self.scores[part.query][part.first : part.first + len(scores)] = scores
        self.routed.setdefault((part.query, part.encoded.prompt_key), scores[0])
        self.open -= 1
        if self.open == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the request by an error; its other parts leave the queue with it."""
        if not self.done.done():
            self.done.set_exception(error)


Pass = Sequence[tuple[QueuedRequest, QueuedPart]]


class WaitingLine:
    """The waiting requests of one priority. A pass takes one part of each in turn; see `take`.

    Attributes:
        tokens: how many tokens wait for a pass.
        requests: how many requests wait or are being scored, including those that are being encoded.
        bytes: how many bytes of requests wait to be tokenized, or are being tokenized.
    """

    def __init__(self) -> None:
        self.tokens = self.requests = self.bytes = 0
        self._queue: collections.deque[QueuedRequest] = collections.deque()
        self._open: set[QueuedRequest] = set()  # the queue, and requests whose last parts are being scored

    def __len__(self) -> int:
        return len(self._queue)

    @contextlib.contextmanager
    def counted(self, requests: int = 0, size: int = 0) -> Iterator[None]:
        """Count requests, or bytes that are tokenized, for the duration of the block."""
        self.requests += requests
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= requests
            self.bytes -= size

    def append(self, request: QueuedRequest) -> None:
        """Add a request behind the others, unless it has no parts."""
        if request.parts:
            self._queue.append(request)
        self._open.add(request)
        self.tokens += request.waiting_tokens

    def remove(self, request: QueuedRequest) -> None:
        """Remove what is left of a request that has ended or whose client has disconnected."""
        self.tokens -= request.waiting_tokens
        request.parts.clear()
        self._open.discard(request)
        with contextlib.suppress(ValueError):
            self._queue.remove(request)

    def put_back(self, request: QueuedRequest, part: QueuedPart) -> None:
        """Let a part that was taken wait again, before all others; nothing if its request has left this line."""
        if request in self._open:
            request.parts.appendleft(part)
            request.turn = 0.0
            self.tokens += part.encoded.tokens
            if request not in self._queue:
                self._queue.append(request)

    def fail(self, error: Exception) -> None:
        """End all requests by an error."""
        for request in self._open:
            request.fail(error)

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
        prompts: set[tuple[str | Known | None, str]] = set()
        tokens = 0
        for request in self._in_turn(rate):
            part = request.parts[0]
            shared = len(part.encoded.prompt) if part.prompt in prompts else 0
            tokens += part.encoded.tokens - shared
            # a long part would delay those that have overtaken it, and are to be scored before it
            overtaken = taken and 2 * (part.encoded.tokens - shared) > limit and request.turn < taken[0][0].turn
            if taken and (overtaken or tokens > min(limit + shared, max(limit, most))):
                break
            taken.append((request, request.parts.popleft()))
            prompts.add(part.prompt)
            self._queue.remove(request)
            if request.parts:
                request.turn = time.monotonic()
                self._queue.append(request)
        self.tokens -= sum(part.encoded.tokens for _, part in taken)
        return taken

    def _in_turn(self, rate: float | None) -> Iterator[QueuedRequest]:
        """Yield the waiting requests by their turn, each followed by those with the same prompt; then again."""
        handicap = _HANDICAP / rate if rate else 0.0
        while self._queue:
            by_prompt: dict[tuple[str | Known | None, str], list[QueuedRequest]] = {}
            for request in sorted(self._queue, key=lambda each: each.turn + handicap * each.parts[0].encoded.tokens):
                by_prompt.setdefault(request.parts[0].prompt, []).append(request)
            yield from itertools.chain.from_iterable(by_prompt.values())


class Throughput:
    """The measured rate: tokens per second over the recent passes, in which large passes count more than small ones.

    Attributes:
        rate: tokens per second; None before the first pass.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._tokens = self._seconds = 0.0
        self._running: tuple[int, float] | None = None  # tokens and start of the running pass

    @contextlib.contextmanager
    def measured(self, tokens: int) -> Iterator[None]:
        """Measure the pass that the block runs; a pass that fails does not count."""
        started = time.monotonic()
        self._running = tokens, started
        try:
            yield
            self.add(tokens, time.monotonic() - started)
        finally:
            self._running = None

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
        size, started = self._running or (0, 0.0)
        return max(0.0, size / self.rate - (time.monotonic() - started)) + tokens / self.rate
