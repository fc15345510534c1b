"""A labeling run: asking those questions that have no answer yet.

    questions → claim → ask → store

Started again, or beside another process with the same store, it asks what is still open and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import LabelingError
from .client import Client, Endpoint, Unanswered
from .questions import Question, expected_cost
from .store import Answer, Store

_TOO_MANY = 20  # calls in a row without an answer, each after all its tries: the endpoint is down


@dataclass
class Tally:
    """How the questions of a run ended: each is counted in exactly one of the first six.

    Attributes:
        known: answered before this run, or the same as an earlier question of it.
        elsewhere: another process is at them.
        unanswered: every try was in vain; a later run asks again.
        left: not asked, since the run ended before.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    known: int = 0
    elsewhere: int = 0
    unanswered: int = 0
    left: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        """Counts a call that this run has made."""
        setattr(self, answer.status, getattr(self, answer.status) + 1)
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost += answer.cost
        if answer.reason:
            self.note(answer.reason)

    def note(self, reason: str) -> None:
        """Counts a reason for which no answer came."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


def ask(
    asked: Sequence[Question],
    endpoint: Endpoint,
    store: Store,
    concurrency: int = 16,
    max_cost: float | None = None,
    progress: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """`ask_all` for callers without an event loop, with a client of its own."""

    async def run() -> Tally:
        async with Client(endpoint) as client:
            return await ask_all(asked, client, store, concurrency, max_cost, progress)

    return asyncio.run(run())


async def ask_all(
    asked: Sequence[Question],
    client: Client,
    store: Store,
    concurrency: int = 16,
    max_cost: float | None = None,
    progress: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Asks what has no answer yet, some at once, and records each answer as it comes.

    Args:
        max_cost: no call is sent that may take the run's cost above this.

    Raises:
        LabelingError: no call to the endpoint can succeed, or many in a row had no answer; what was answered before
            is recorded.
    """
    run = _Run(asked, client, store, max_cost, progress)
    await asyncio.gather(*(run.worker() for _ in range(concurrency)))
    run.tally.left += sum(1 for _ in run.open)
    if run.ended is not None:
        raise run.ended
    return run.tally


class _Run:
    """What the workers share."""

    def __init__(
        self,
        asked: Sequence[Question],
        client: Client,
        store: Store,
        max_cost: float | None,
        progress: Callable[[Tally], None],
    ) -> None:
        self.open = iter(asked)
        self.client, self.store, self.max_cost, self.progress = client, store, max_cost, progress
        self.tally, self.spent_out = Tally(), False
        self._seen: set[str] = set()
        self._reserved = 0.0
        self._in_vain = 0  # calls in a row without an answer
        self.ended: LabelingError | None = None

    async def worker(self) -> None:
        """Takes one question after the other until there is none, or the run has ended."""
        while self.ended is None and not self.spent_out and (question := next(self.open, None)) is not None:
            await self._one(question)
            self.progress(self.tally)

    async def _one(self, question: Question) -> None:
        key = question.key
        if key in self._seen or self.store.get(key) is not None:
            self.tally.known += 1
            return
        self._seen.add(key)
        reserved = expected_cost(question, self.client.endpoint)[2]
        if self.max_cost is not None and self.tally.cost + self._reserved + reserved > self.max_cost:
            self.spent_out = True
            self.tally.left += 1
            return
        if not self.store.claim(key):
            self.tally.elsewhere += 1
            return
        self._reserved += reserved
        try:
            answer = await self.client.ask(question.request)
        except Unanswered as error:
            self.store.forget(key)
            self.tally.unanswered += 1
            self.tally.note(str(error))
            self._in_vain += 1
            if self._in_vain >= _TOO_MANY:
                self.ended = LabelingError(f"{self._in_vain} calls in a row had no answer, the last: {error}")
        except LabelingError as error:
            self.store.forget(key)
            self.tally.unanswered += 1
            self.ended = error
        else:
            self.store.put(key, self.client.endpoint.model, question.about, question.request["messages"], answer)
            self.tally.add(answer)
            self._in_vain = 0
        finally:
            self._reserved -= reserved
