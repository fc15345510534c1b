"""Send the questions that have no recorded answer yet, and turn answers into labels.

    ask              claim a question → send it → record its answer, several at once
    collect_labels   the answers in both orders → a label

A run that is started again, or next to another process with the same store, sends only the remaining questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import ConfigError, LabelingError
from ..labels import PROBABILITIES, CapabilityLabel, Outcome, content_digest
from .prompt import Verdict, read_verdicts
from .questions import Endpoint, Question, estimate_cost, token_limit
from .store import AnswerStore, JudgeAnswer

if TYPE_CHECKING:
    from .client import JudgeClient

_MAX_UNANSWERED = 20  # consecutive questions without an answer, each after all its attempts: the endpoint is down
_MIN_GROUPS = 3  # a content filter may refuse every question on one group, which must not stop the run
_SHOWN_CHARACTERS = 300
_MIRRORED = {Outcome.FIRST: Outcome.SECOND, Outcome.SECOND: Outcome.FIRST}


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


def ask(
    questions: Sequence[Question],
    endpoint: Endpoint,
    store: AnswerStore,
    *,
    concurrency: int = 16,
    max_cost: float | None = None,
    max_unusable: int = 20,
    on_progress: Callable[[RunStatistics], None] = lambda _: None,
) -> RunStatistics:
    """Send the questions that have no recorded answer, several at once, and record each answer when it arrives.

    Args:
        concurrency: maximum number of calls in flight.
        max_cost: no call is sent that could raise the cost of the run above this; None for no limit.
        max_unusable: the run stops after this many unusable answers in a row, from at least three groups.
        on_progress: called after each question.

    Raises:
        LabelingError: no call to the endpoint can succeed; too many questions in a row have no usable answer; or not
            one question has. Answers that arrived before the error are recorded.
        ConfigError: there is a budget, and a request without a token limit could exceed it; or the URL or the key is
            invalid.
    """
    from .client import JudgeClient  # which requires openai

    if max_cost is not None and any(token_limit(question.request) is None for question in questions):
        raise ConfigError("a budget requires a token limit in each request; set max_tokens or max_completion_tokens")

    async def work() -> _LabelingRun:
        async with JudgeClient(endpoint) as client:
            run = _LabelingRun(iter(questions), client, store, max_cost, max_unusable, on_progress)
            await asyncio.gather(*(run.work() for _ in range(concurrency)))
        return run

    run = asyncio.run(work())
    counts = run.statistics
    counts.left += sum(1 for _ in run.remaining)
    if run.error is None and run.example and not run.any_usable and not counts.elsewhere:
        total = counts.answered + counts.refused + counts.failed + counts.known + counts.unanswered
        run.error = LabelingError(f"none of {total} questions has a usable answer; {run.example}")
    if run.error:
        raise run.error
    return counts


@dataclass
class _LabelingRun:
    """The state that the workers of a run share."""

    remaining: Iterator[Question]
    client: JudgeClient
    store: AnswerStore
    max_cost: float | None
    max_unusable: int
    on_progress: Callable[[RunStatistics], None]
    statistics: RunStatistics = field(default_factory=RunStatistics)
    error: LabelingError | None = None
    any_usable: bool = False
    example: str = ""  # the last unusable answer, or the last error
    _budget_exhausted: bool = False
    _reserved_cost: float = 0.0  # of the calls in flight, which together must stay within the budget
    _keys: set[str] = field(default_factory=set)
    _unanswered_in_a_row: int = 0
    _unusable_in_a_row: list[str] = field(default_factory=list)  # the groups of these answers

    async def work(self) -> None:
        """Send questions until none is left, the budget is exhausted, or an error ends the run."""
        while self.error is None and not self._budget_exhausted and (question := next(self.remaining, None)):
            cost = estimate_cost(question, self.client.endpoint)[2]
            if self._may_send(question, cost):
                self._reserved_cost += cost
                try:
                    self._record(question, await self.client.ask(question.request))
                except LabelingError as error:
                    self.store.release(question.key)
                    self.statistics.unanswered += 1
                    self.error = error
                finally:
                    self._reserved_cost -= cost
            self.on_progress(self.statistics)

    def _may_send(self, question: Question, cost: float) -> bool:
        """Claim a question. Return False, and count it, if it must not be sent."""
        key, counts = question.key, self.statistics
        answer = None if key in self._keys else self.store.get(key)
        if key in self._keys or answer is not None:
            counts.known += 1
            if answer is not None and not self.any_usable:
                self.any_usable = _is_usable(answer, question.capabilities)
                self.example = _description(answer)
            return False
        self._keys.add(key)
        if self.max_cost is not None and counts.cost + self._reserved_cost + cost > self.max_cost:
            self._budget_exhausted = True
            counts.left += 1
            return False
        if not self.store.claim(key):
            counts.elsewhere += 1
            return False
        return True

    def _record(self, question: Question, answer: JudgeAnswer) -> None:
        """Store and count an answer; end the run after too many in a row without a verdict."""
        self.statistics.add(answer)
        if answer.status == "unanswered":
            self.store.release(question.key)
            self.example = answer.reason or ""
            self._unanswered_in_a_row += 1
            if self._unanswered_in_a_row == _MAX_UNANSWERED:
                self.error = LabelingError(f"{_MAX_UNANSWERED} calls in a row have no answer; the last: {self.example}")
            return
        model, messages = self.client.endpoint.model, question.request["messages"]
        self.store.put(question.key, model, question.description, messages, answer)
        self._unanswered_in_a_row = 0
        if _is_usable(answer, question.capabilities):
            self.any_usable = True
            self._unusable_in_a_row.clear()
            return
        self.statistics.unusable += 1
        self.example = _description(answer)
        self._unusable_in_a_row.append(question.group.id)
        count = len(self._unusable_in_a_row)
        if self.error is None and count >= self.max_unusable and len(set(self._unusable_in_a_row)) >= _MIN_GROUPS:
            self.error = LabelingError(f"{count} answers in a row are unusable; {self.example}")


def _description(answer: JudgeAnswer) -> str:
    if answer.status != "answered":
        return f"the last call {'was refused' if answer.status == 'refused' else 'failed'}: {answer.reason}"
    text = answer.text or ""
    shown = repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
    if answer.reason:
        return f"the last one is {shown}: {answer.reason}; raise it with --request-field max_tokens=N"
    return f"the last one is {shown}; expected a JSON object with A, B or C for each capability"


def _is_usable(answer: JudgeAnswer, capabilities: Sequence[str]) -> bool:
    return any(verdict.outcome in PROBABILITIES for verdict in _verdicts(answer, capabilities).values())


def _verdicts(answer: JudgeAnswer | None, capabilities: Sequence[str]) -> dict[str, Verdict]:
    """Return the verdict on each capability that an answer, or a missing answer, contains."""
    if answer is not None and answer.status == "answered":
        return read_verdicts(answer.text or "", capabilities, answer.tokens)
    return dict.fromkeys(capabilities, Verdict(Outcome(answer.status) if answer else Outcome.OPEN))


def collect_labels(questions: Sequence[Question], store: AnswerStore, judge: str) -> list[CapabilityLabel]:
    """Return the labels of all pairs and capabilities in the questions, including those without an answer yet.

    A label has the verdicts of both orders, stated about the responses instead of their positions.
    """
    labels: dict[tuple[str, str, str, int, int], CapabilityLabel] = {}
    seen: set[tuple[str, str]] = set()
    for question in questions:
        group, names = question.group, question.capabilities
        if (group.id, question.key) in seen:  # the data contain the group twice
            continue
        seen.add((group.id, question.key))
        answer, content = store.get(question.key), content_digest(group)
        spent = answer or JudgeAnswer("unanswered")
        first, second = sorted((question.first, question.second))
        for name, (outcome, p) in _verdicts(answer, names).items():
            if question.first == first:
                verdict = {"given": outcome, "p_given": p}
            else:
                mirrored = _MIRRORED.get(outcome, outcome)
                verdict = {"swapped": mirrored, "p_swapped": None if p is None else 1 - p}
            empty = CapabilityLabel(judge, group.id, content, group.task or "", name, first, second)
            label = labels.get(key := (group.id, content, name, first, second), empty)
            labels[key] = replace(
                label,
                **verdict,
                prompt_tokens=label.prompt_tokens + spent.prompt_tokens / len(names),
                completion_tokens=label.completion_tokens + spent.completion_tokens / len(names),
                cost=label.cost + spent.cost / len(names),
            )
    return list(labels.values())
