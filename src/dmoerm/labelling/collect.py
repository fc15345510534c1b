"""From answers to labels: both orders of a pair side by side, by the response and not by its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..labels import VERDICTS, Label, Outcome, content_digest
from .questions import Question
from .store import Answer, Store
from .verdict import Verdict, read_verdicts

_MIRRORED = {Outcome.FIRST: Outcome.SECOND, Outcome.SECOND: Outcome.FIRST}
_P = {Outcome.FIRST: 1.0, Outcome.TIE: 0.5, Outcome.SECOND: 0.0}


class Key(NamedTuple):
    """What a label is about: see `Label`."""

    group: str
    content: str
    task: str
    capability: str
    first: int
    second: int


@dataclass
class Orders:
    """What was said in either order; several verdicts on one order are so many answers to the same question."""

    given: list[Verdict] = field(default_factory=list)
    swapped: list[Verdict] = field(default_factory=list)
    tokens: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def label(self, judge: str, key: Key) -> Label:
        """What they come to."""
        prompt, completion, cost = self.tokens
        (given, p_given), (swapped, p_swapped) = _one(self.given), _one(self.swapped)
        return Label(judge, *key, given, swapped, p_given, p_swapped, prompt, completion, cost)


def collect(asked: Iterable[Question], store: Store, judge: str) -> list[Label]:
    """The labels of all pairs and capabilities that were to be asked, also of those that have no answer yet."""
    found: dict[Key, Orders] = {}
    digests: dict[int, str] = {}
    for question in asked:
        group = question.group
        content = digests.setdefault(id(group), content_digest(group))
        answer = store.get(question.key)
        verdicts = _verdicts(answer, question.capabilities)
        first, second = sorted((question.first, question.second))
        for name in question.capabilities:
            orders = found.setdefault(Key(group.id, content, group.task or "", name, first, second), Orders())
            given = question.first == first
            (orders.given if given else orders.swapped).append(verdicts[name] if given else _mirrored(verdicts[name]))
            if answer is not None:
                spent = (answer.prompt_tokens, answer.completion_tokens, answer.cost)
                share = len(question.capabilities)
                orders.tokens = tuple(t + s / share for t, s in zip(orders.tokens, spent, strict=True))  # pyright: ignore
    return [orders.label(judge, key) for key, orders in found.items()]


def _verdicts(answer: Answer | None, capabilities: Sequence[str]) -> dict[str, Verdict]:
    if answer is None:
        return dict.fromkeys(capabilities, Verdict(Outcome.OPEN))
    if answer.status != "answered":
        return dict.fromkeys(capabilities, Verdict(Outcome(answer.status)))
    return read_verdicts(answer.text or "", capabilities, answer.tokens)


def _mirrored(verdict: Verdict) -> Verdict:
    p = None if verdict.p_first is None else 1 - verdict.p_first
    return Verdict(_MIRRORED.get(verdict.outcome, verdict.outcome), p)


def _one(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of one order: of several the most frequent (a tie where two are), and their mean probability."""
    if len(verdicts) < 2:
        return verdicts[0] if verdicts else Verdict(Outcome.OPEN)
    readable = [v for v in verdicts if v.outcome in VERDICTS]
    if not readable:
        return verdicts[0]
    (most, count), *others = Counter(v.outcome for v in readable).most_common()
    outcome = Outcome.TIE if others and others[0][1] == count else most
    return Verdict(outcome, sum(_P[v.outcome] if v.p_first is None else v.p_first for v in readable) / len(readable))
