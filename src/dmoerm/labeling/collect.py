"""Combine answers into labels: the verdicts of both orders, stated about the responses instead of their positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..labels import PROBABILITIES, CapabilityLabel, Outcome, content_digest
from .questions import Question
from .store import AnswerStore, JudgeAnswer
from .verdict import Verdict, read_verdicts

_MIRRORED = {Outcome.FIRST: Outcome.SECOND, Outcome.SECOND: Outcome.FIRST}


@dataclass
class OrderVerdicts:
    """The verdicts on one pair and capability in each order; several verdicts are repeated answers to one question.

    Attributes:
        given, swapped: verdicts with the lower index shown first, and with the higher index shown first.
        usage: prompt tokens, completion tokens and cost.
    """

    given: list[Verdict] = field(default_factory=list)
    swapped: list[Verdict] = field(default_factory=list)
    usage: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def add(self, verdict: Verdict, first_shown_first: bool) -> None:
        """Add a verdict about the response shown first."""
        if first_shown_first:
            self.given.append(verdict)
            return
        p = None if verdict.p_first is None else 1 - verdict.p_first
        self.swapped.append(Verdict(_MIRRORED.get(verdict.outcome, verdict.outcome), p))

    def label(self, key: CapabilityLabel) -> CapabilityLabel:
        """Return `key`, which names judge, pair and capability, with the verdicts filled in."""
        prompt, completion, cost = self.usage
        (given, p_given), (swapped, p_swapped) = _merge(self.given), _merge(self.swapped)
        verdicts = {"given": given, "swapped": swapped, "p_given": p_given, "p_swapped": p_swapped}
        return replace(key, **verdicts, prompt_tokens=prompt, completion_tokens=completion, cost=cost)


def collect_labels(questions: Sequence[Question], store: AnswerStore, judge: str) -> list[CapabilityLabel]:
    """Return the labels of all pairs and capabilities in the questions, including those without an answer yet."""
    verdicts_of: dict[CapabilityLabel, OrderVerdicts] = {}
    digests: dict[int, str] = {}
    seen: set[tuple[str, str]] = set()
    for question in questions:
        group = question.group
        if (group.id, question.key) in seen:  # the data contain the group twice
            continue
        seen.add((group.id, question.key))
        if id(group) not in digests:
            digests[id(group)] = content_digest(group)
        answer = store.get(question.key)
        verdicts = answer_verdicts(answer, question.capabilities)
        first, second = sorted((question.first, question.second))
        for name in question.capabilities:
            key = CapabilityLabel(judge, group.id, digests[id(group)], group.task or "", name, first, second)
            orders = verdicts_of.setdefault(key, OrderVerdicts())
            orders.add(verdicts[name], question.first == first)
            if answer is not None:
                share = len(question.capabilities)
                prompt, completion, cost = orders.usage
                orders.usage = (
                    prompt + answer.prompt_tokens / share,
                    completion + answer.completion_tokens / share,
                    cost + answer.cost / share,
                )
    return [orders.label(key) for key, orders in verdicts_of.items()]


def answer_verdicts(answer: JudgeAnswer | None, capabilities: Sequence[str]) -> dict[str, Verdict]:
    """Return the verdict on each capability that an answer, or a missing answer, contains."""
    if answer is None:
        return dict.fromkeys(capabilities, Verdict(Outcome.OPEN))
    if answer.status != "answered":
        return dict.fromkeys(capabilities, Verdict(Outcome(answer.status)))
    return read_verdicts(answer.text or "", capabilities, answer.tokens)


def is_usable(answer: JudgeAnswer, capabilities: Sequence[str]) -> bool:
    """Return whether an answer contains a verdict on at least one capability."""
    return any(verdict.outcome in PROBABILITIES for verdict in answer_verdicts(answer, capabilities).values())


def _merge(verdicts: Sequence[Verdict]) -> Verdict:
    """Merge the verdicts of one order: the most frequent outcome (a tie if two are) and the mean probability."""
    if len(verdicts) < 2:
        return verdicts[0] if verdicts else Verdict(Outcome.OPEN)
    readable = [verdict for verdict in verdicts if verdict.outcome in PROBABILITIES]
    if not readable:
        return verdicts[0]
    (most_frequent, count), *others = Counter(verdict.outcome for verdict in readable).most_common()
    outcome = Outcome.TIE if others and others[0][1] == count else most_frequent
    values = [PROBABILITIES[v.outcome] if v.p_first is None else v.p_first for v in readable]
    return Verdict(outcome, sum(values) / len(values))
