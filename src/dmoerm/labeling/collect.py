"""Turn answers of a judge, or verdicts that other tools recorded, into labels.

A label has the verdicts of both orders, stated about the responses instead of their positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import DataError, shorten
from ..labels import PROBABILITIES, CapabilityLabel, Outcome, content_digest
from ..schema import Group
from .prompt import Verdict, read_verdicts
from .questions import Question
from .store import AnswerStore, JudgeAnswer

_MIRRORED = {Outcome.FIRST: Outcome.SECOND, Outcome.SECOND: Outcome.FIRST}


@dataclass
class _OrderVerdicts:
    """The verdicts on one pair and capability in each order, and the prompt tokens, completion tokens and cost.

    Several verdicts are repeated answers to one question.
    """

    given: list[Verdict] = field(default_factory=list)
    swapped: list[Verdict] = field(default_factory=list)
    usage: tuple[float, ...] = (0.0, 0.0, 0.0)

    def label(self, key: CapabilityLabel) -> CapabilityLabel:
        prompt, completion, cost = self.usage
        (given, p_given), (swapped, p_swapped) = _merge(self.given), _merge(self.swapped)
        verdicts = {"given": given, "swapped": swapped, "p_given": p_given, "p_swapped": p_swapped}
        return replace(key, **verdicts, prompt_tokens=prompt, completion_tokens=completion, cost=cost)


def collect_labels(questions: Sequence[Question], store: AnswerStore, judge: str) -> list[CapabilityLabel]:
    """Return the labels of all pairs and capabilities in the questions, including those without an answer yet."""
    verdicts_of: dict[CapabilityLabel, _OrderVerdicts] = {}
    digests: dict[int, str] = {}
    seen: set[tuple[str, str]] = set()
    for question in questions:
        group, names = question.group, question.capabilities
        if (group.id, question.key) in seen:  # the data contain the group twice
            continue
        seen.add((group.id, question.key))
        if id(group) not in digests:
            digests[id(group)] = content_digest(group)
        answer = store.get(question.key)
        verdicts = answer_verdicts(answer, names)
        first, second = sorted((question.first, question.second))
        for name in names:
            key = CapabilityLabel(judge, group.id, digests[id(group)], group.task or "", name, first, second)
            orders = verdicts_of.setdefault(key, _OrderVerdicts())
            outcome, p = verdicts[name]
            if question.first == first:
                orders.given.append(verdicts[name])
            else:  # state the verdict about the response with the lower index
                orders.swapped.append(Verdict(_MIRRORED.get(outcome, outcome), None if p is None else 1 - p))
            if answer is not None:
                spent = (answer.prompt_tokens, answer.completion_tokens, answer.cost)
                orders.usage = tuple(total + each / len(names) for total, each in zip(orders.usage, spent, strict=True))
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


def recorded_labels(
    rows: Iterable[tuple[int, dict[str, Any] | DataError]], groups: Sequence[Group], judge: str, file: str = "verdicts"
) -> tuple[list[CapabilityLabel], int]:
    """Return labels from recorded verdicts, and the number of rows about groups that are not in the data.

    Several verdicts on one question are repeated answers to it.

    Args:
        rows: line number and row. A row has the fields `id` (of a group), `order` (`given` or `swapped`), `preferred`
            (capability → index of the better response, or `tie`), and optionally `pair` (two indices; by default the
            group's two responses), `judge` and `mode`, which become part of the judge's name.
        groups: the data.
        judge: the judge's name for rows without one.
        file: the rows' source, for error messages.

    Raises:
        DataError: a row is not a verdict (with its line), or no row yields a label (with the cause).
    """
    by_id = {group.id: group for group in groups}
    verdicts: dict[CapabilityLabel, _OrderVerdicts] = {}
    unknown: list[str] = []
    count = 0
    for line, row in rows:
        count += 1
        try:
            if isinstance(row, DataError):
                raise row
            if not _add(row, by_id, judge, verdicts):
                unknown.append(str(row.get("id")))
        except DataError as error:
            raise error.at(file, line) from None
    if verdicts:
        return [orders.label(key) for key, orders in verdicts.items()], len(unknown)
    if not count:
        raise DataError("contains no verdicts", file=file, hint="check the file")
    if not by_id:
        raise DataError("the data contain no groups", hint="check the files passed as DATA")
    if len(unknown) < count:
        raise DataError("preferred is empty in every row", file=file, field="preferred", hint="add a capability")
    raise DataError(
        f"none of the {count} verdicts is about a group in the data, whose ids are like {shorten(next(iter(by_id)))}",
        file=file,
        field="id",
        value=unknown[0],
        hint="pass the data that were judged as DATA",
    )


def _add(
    row: Mapping[str, Any], groups: Mapping[str, Group], judge: str, verdicts: dict[CapabilityLabel, _OrderVerdicts]
) -> bool:
    """Add a row's verdicts. Return False if its group is not in the data."""
    preferred, order = row.get("preferred"), row.get("order")
    if not isinstance(preferred, Mapping):
        hint = "write an object: capability → index or tie"
        raise DataError("is not an object", field="preferred", value=preferred, hint=hint)
    if order not in ("given", "swapped"):
        raise DataError("is neither given nor swapped", field="order", value=order, hint="state the order shown")
    group = groups.get(str(row.get("id")))
    if group is None:
        return False
    (first, second), content = _pair(row, group), content_digest(group)
    name = "/".join(str(part) for part in (row.get("judge") or judge, row.get("mode")) if part)
    outcomes = {first: Outcome.FIRST, second: Outcome.SECOND, "tie": Outcome.TIE}
    for capability, winner in preferred.items():
        outcome = outcomes.get(winner) if isinstance(winner, int | str) else None
        if outcome is None:
            hint = f"write {first}, {second} or tie"
            raise DataError("is not one of the pair", field=f"preferred.{capability}", value=winner, hint=hint)
        key = CapabilityLabel(name, group.id, content, group.task or "", capability, first, second)
        orders = verdicts.setdefault(key, _OrderVerdicts())
        (orders.given if order == "given" else orders.swapped).append(Verdict(outcome))
    return True


def _pair(row: Mapping[str, Any], group: Group) -> tuple[int, int]:
    pair = row.get("pair", [0, 1] if len(group.responses) == 2 else None)
    try:
        first, second = pair  # pyright: ignore
        if 0 <= first < second < len(group.responses):
            return first, second
    except (TypeError, ValueError):
        pass
    hint = "write two indices of responses, the lower one first"
    raise DataError("is not a pair of responses", field="pair", value=pair, hint=hint)
