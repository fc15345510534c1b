"""Send the questions that have no recorded answer yet: claim, send, record.

A run that is started again, or next to another process with the same store, sends only the remaining questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import ConfigError, LabelingError
from .collect import is_usable
from .questions import Endpoint, Question, estimate_cost, token_limit
from .store import AnswerStore, JudgeAnswer

if TYPE_CHECKING:
    from .client import JudgeClient

_MAX_UNANSWERED = 20  # consecutive questions without an answer, each after all its attempts: the endpoint is down
_MIN_GROUPS = 3  # a content filter may refuse every question on one group, which must not stop the run
_SHOWN_CHARACTERS = 300


@dataclass
class RunStatistics:
    """The number of questions by result; each question is counted in exactly one of the first seven.

    Attributes:
        answered: the judge answered, readably or not.
        refused: the judge or a content filter refused to answer.
        failed: the endpoint rejected the request permanently.
        known: recorded before this run, or equal to an earlier question of this run.
        elsewhere: claimed by another process.
        unanswered: all attempts failed; a later run sends the question again.
        left: not sent, because the run ended first.
        unusable: answered, refused or failed questions whose answer contains no verdict.
        prompt_tokens, completion_tokens, cost: usage of this run.
        reasons: reason of a refusal or failure → number of questions.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    known: int = 0
    elsewhere: int = 0
    unanswered: int = 0
    left: int = 0
    unusable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, answer: JudgeAnswer) -> None:
        """Count a call of this run."""
        setattr(self, answer.status, getattr(self, answer.status) + 1)
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost += answer.cost
        if answer.reason:
            self.reasons[answer.reason] = self.reasons.get(answer.reason, 0) + 1


@dataclass(frozen=True)
class RunLimits:
    """When a run stops or waits.

    Attributes:
        concurrency: maximum number of calls in flight.
        max_cost: no call is sent that could raise the cost of the run above this; None for no limit.
        max_unusable: the run stops after this many unusable answers in a row, from at least three groups.
    """

    concurrency: int = 16
    max_cost: float | None = None
    max_unusable: int = 20


DEFAULT_LIMITS = RunLimits()


def ask(
    questions: Sequence[Question],
    endpoint: Endpoint,
    store: AnswerStore,
    limits: RunLimits = DEFAULT_LIMITS,
    on_progress: Callable[[RunStatistics], None] = lambda _: None,
) -> RunStatistics:
    """Run `ask_async` with a new client in a new event loop."""
    from .client import JudgeClient  # which requires openai

    async def run() -> RunStatistics:
        async with JudgeClient(endpoint) as client:
            return await ask_async(questions, client, store, limits, on_progress)

    return asyncio.run(run())


async def ask_async(
    questions: Sequence[Question],
    client: JudgeClient,
    store: AnswerStore,
    limits: RunLimits = DEFAULT_LIMITS,
    on_progress: Callable[[RunStatistics], None] = lambda _: None,
) -> RunStatistics:
    """Send the questions that have no recorded answer, several at once, and record each answer when it arrives.

    Args:
        on_progress: called after each question.

    Raises:
        LabelingError: no call to the endpoint can succeed; too many questions in a row have no usable answer; or not
            one question has. Answers that arrived before the error are recorded.
        ConfigError: there is a budget, and a request without a token limit could exceed it.
    """
    if limits.max_cost is not None and any(token_limit(question.request) is None for question in questions):
        raise ConfigError("a budget requires a token limit in each request; set max_tokens or max_completion_tokens")
    run = _LabelingRun(iter(questions), client, store, limits, on_progress)
    await asyncio.gather(*(run.work() for _ in range(limits.concurrency)))
    run.statistics.left += sum(1 for _ in run.remaining)
    if error := run.error or run.nothing_usable():
        raise error
    return run.statistics


@dataclass
class _LabelingRun:
    """The state that the workers of a run share."""

    remaining: Iterator[Question]
    client: JudgeClient
    store: AnswerStore
    limits: RunLimits
    on_progress: Callable[[RunStatistics], None]
    statistics: RunStatistics = field(default_factory=RunStatistics)
    error: LabelingError | None = None
    _budget_exhausted: bool = False
    _any_usable: bool = False
    _keys: set[str] = field(default_factory=set)
    _reserved_cost: float = 0.0  # of the calls in flight
    _unanswered_in_a_row: int = 0
    _unusable_in_a_row: int = 0
    _unusable_groups: set[str] = field(default_factory=set)
    _example: str = ""  # the last unusable answer, or the last error

    async def work(self) -> None:
        while self.error is None and not self._budget_exhausted and (question := next(self.remaining, None)):
            cost = estimate_cost(question, self.client.endpoint)[2]
            if self._may_send(question, cost):
                self._reserved_cost += cost
                try:
                    await self._send(question)
                finally:
                    self._reserved_cost -= cost
            self.on_progress(self.statistics)

    def _may_send(self, question: Question, cost: float) -> bool:
        """Claim a question. Return False, and count it, if it must not be sent."""
        key, statistics = question.key, self.statistics
        answer = None if key in self._keys else self.store.get(key)
        if key in self._keys or answer is not None:
            statistics.known += 1
            if answer is not None and not self._any_usable:
                self._any_usable = is_usable(answer, question.capabilities)
                self._example = _description(answer)
            return False
        self._keys.add(key)
        budget = self.limits.max_cost
        if budget is not None and statistics.cost + self._reserved_cost + cost > budget:
            self._budget_exhausted = True
            statistics.left += 1
            return False
        if not self.store.claim(key):
            statistics.elsewhere += 1
            return False
        return True

    async def _send(self, question: Question) -> None:
        try:
            answer = await self.client.ask(question.request)
        except LabelingError as error:
            self.store.release(question.key)
            self.statistics.unanswered += 1
            self.error = error
            return
        if answer.status != "unanswered":
            model, messages = self.client.endpoint.model, question.request["messages"]
            self.store.put(question.key, model, question.description, messages, answer)
            self._count_answered(question, answer)
            return
        self.store.release(question.key)
        self.statistics.add(answer)
        self._example = answer.reason or ""
        self._unanswered_in_a_row += 1
        if self._unanswered_in_a_row == _MAX_UNANSWERED:
            self.error = LabelingError(f"{_MAX_UNANSWERED} calls in a row have no answer; the last: {self._example}")

    def _count_answered(self, question: Question, answer: JudgeAnswer) -> None:
        self.statistics.add(answer)
        self._unanswered_in_a_row = 0
        if is_usable(answer, question.capabilities):
            self._any_usable, self._unusable_in_a_row = True, 0
            self._unusable_groups.clear()
            return
        self.statistics.unusable += 1
        self._unusable_in_a_row += 1
        self._unusable_groups.add(question.group.id)
        self._example = _description(answer)
        stop = self._unusable_in_a_row >= self.limits.max_unusable and len(self._unusable_groups) >= _MIN_GROUPS
        if stop and self.error is None:
            self.error = LabelingError(f"{self._unusable_in_a_row} answers in a row are unusable; {self._example}")

    def nothing_usable(self) -> LabelingError | None:
        tally = self.statistics
        if self._any_usable or tally.elsewhere or not self._example:
            return None
        total = tally.answered + tally.refused + tally.failed + tally.known + tally.unanswered
        return LabelingError(f"none of {total} questions has a usable answer; {self._example}")


def _description(answer: JudgeAnswer) -> str:
    if answer.status != "answered":
        return f"the last call {'was refused' if answer.status == 'refused' else 'failed'}: {answer.reason}"
    text = answer.text or ""
    shown = repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
    if answer.reason:
        return f"the last one is {shown}: {answer.reason}; raise it with --request-field max_tokens=N"
    return f"the last one is {shown}; expected a JSON object with A, B or C for each capability"
