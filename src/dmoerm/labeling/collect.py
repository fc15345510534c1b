"""From answers to labels: both orders of a pair side by side, by the response and not by its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..labels import PROBABILITIES, Label, Outcome, content_digest
from .questions import Question
from .store import Answer, Store
from .verdict import Verdict, read_verdicts

_MIRRORED = {Outcome.FIRST: Outcome.SECOND, Outcome.SECOND: Outcome.FIRST}


@dataclass
class Orders:
    """What was said in either order; several verdicts on one order are so many answers to the same question."""

    given: list[Verdict] = field(default_factory=list)
    swapped: list[Verdict] = field(default_factory=list)
    tokens: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def label(self, about: Label) -> Label:
        """What they come to; `about` says of which pair, capability and judge."""
        prompt, completion, cost = self.tokens
        (given, p_given), (swapped, p_swapped) = _one(self.given), _one(self.swapped)
        said = {"given": given, "swapped": swapped, "p_given": p_given, "p_swapped": p_swapped}
        return replace(about, **said, prompt_tokens=prompt, completion_tokens=completion, cost=cost)


def collect(asked: Sequence[Question], store: Store, judge: str) -> list[Label]:
    """The labels of all pairs and capabilities that were to be asked, also of those that have no answer yet."""
    found: dict[Label, Orders] = {}
    contents: dict[int, str] = {}
    seen: set[tuple[str, str]] = set()
    for question in asked:
        group = question.group
        if (group.id, question.key) in seen:  # the same group twice in the data
            continue
        seen.add((group.id, question.key))
        if id(group) not in contents:
            contents[id(group)] = content_digest(group)
        answer = store.get(question.key)
        verdicts = _verdicts(answer, question.capabilities)
        first, second = sorted((question.first, question.second))
        for name in question.capabilities:
            about = Label(judge, group.id, contents[id(group)], group.task or "", name, first, second)
            orders = found.setdefault(about, Orders())
            given = question.first == first
            (orders.given if given else orders.swapped).append(verdicts[name] if given else _mirrored(verdicts[name]))
            if answer is not None:
                spent = (answer.prompt_tokens, answer.completion_tokens, answer.cost)
                share = len(question.capabilities)
                orders.tokens = tuple(t + s / share for t, s in zip(orders.tokens, spent, strict=True))  # pyright: ignore
    return [orders.label(about) for about, orders in found.items()]


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
    readable = [v for v in verdicts if v.outcome in PROBABILITIES]
    if not readable:
        return verdicts[0]
    (most, count), *others = Counter(v.outcome for v in readable).most_common()
    outcome = Outcome.TIE if others and others[0][1] == count else most
    return Verdict(
        outcome, sum(PROBABILITIES[v.outcome] if v.p_first is None else v.p_first for v in readable) / len(readable)
    )
