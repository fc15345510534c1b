"""How good labels are, by judge, task and capability: consistent, unbiased, and of people's opinion?

Tables are of people's verdict (row) and the judge's (column): first, second, tie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..labels import OVERALL, PROBABILITIES, Label, Outcome, content_digest, likelier
from ..schema import Group, prompt_key

Array = NDArray[np.float64]
_ORDER = (Outcome.FIRST, Outcome.SECOND, Outcome.TIE)
_RESAMPLES = 1000


@dataclass(frozen=True)
class Quality:
    """What there is to say of one judge's labels on one capability; a share of nothing is None.

    Attributes:
        pairs: labels.
        consistency: share of those with a verdict in both orders whose two verdicts are the same.
        shown_first: share of the verdicts for one of the two that are for the one shown first; 0.5: no position bias.
        unparseable, refused, failed, open: shares of all calls.
        longer, longer_people: how often the longer response is preferred (both orders taken together; by people,
            on the same pairs).
        people: pairs that people order.
        agreement_one: share of those on which a single order's verdict is theirs; a tie counts half.
        agreement_both: the same for pairs on which both orders agree.
        agreement_mean: the same for the mean of both orders, on all pairs that have one.
        kappa_one, kappa_both: Cohen's κ with people over first, second and tie, for a single order and for pairs on
            which both agree.
        kappa_interval: 95 %, of `kappa_both`, by bootstrap over prompts.
        prompt_tokens, completion_tokens, cost: of all calls.
    """

    judge: str
    task: str
    capability: str
    pairs: int
    consistency: float | None
    shown_first: float | None
    unparseable: float | None
    refused: float | None
    failed: float | None
    open: float | None
    longer: float | None
    longer_people: float | None
    people: int
    agreement_one: float | None
    agreement_both: float | None
    agreement_mean: float | None
    kappa_one: float | None
    kappa_both: float | None
    kappa_interval: tuple[float, float] | None
    prompt_tokens: float
    completion_tokens: float
    cost: float


@dataclass(frozen=True)
class _Row:
    """A label beside what people say of the same pair."""

    label: Label
    group: Group | None
    people: Outcome | None

    @property
    def verdicts(self) -> list[tuple[Outcome, bool]]:
        """The readable verdicts, and whether `first` was shown first."""
        both = ((self.label.given, True), (self.label.swapped, False))
        return [(outcome, given) for outcome, given in both if outcome in PROBABILITIES]


def qualities(labels: Iterable[Label], groups: Iterable[Group]) -> list[Quality]:
    """One entry for each judge, task and capability, and one over all capabilities of a judge and task."""
    by_id = {(group.id, content_digest(group)): group for group in groups}
    found: dict[tuple[str, str, str], list[_Row]] = defaultdict(list)
    for label in labels:
        group = by_id.get((label.group, label.content))
        row = _Row(label, group, _people(label, group))
        found[label.judge, label.task, label.capability].append(row)
    wholes: dict[tuple[str, str, str], list[_Row]] = defaultdict(list)
    for (judge, task, capability), rows in found.items():
        if capability != OVERALL:
            wholes[judge, task, "all capabilities"] += rows
    return [_quality(*name, rows) for name, rows in sorted([*found.items(), *wholes.items()])]


def _people(label: Label, group: Group | None) -> Outcome | None:
    if group is None or not group.differ(label.first, label.second):
        return None
    grades = group.grades if label.capability == OVERALL else group.capabilities.get(label.capability)
    first, second = (None, None) if grades is None else (grades[label.first], grades[label.second])
    if first is None or second is None:
        return None
    return Outcome.TIE if first == second else Outcome.FIRST if first > second else Outcome.SECOND


def _quality(judge: str, task: str, capability: str, rows: Sequence[_Row]) -> Quality:
    calls = [outcome for row in rows for outcome in (row.label.given, row.label.swapped)]
    both = [row for row in rows if len(row.verdicts) == 2]
    decided = [(outcome, given) for row in rows for outcome, given in row.verdicts if _decides(outcome)]
    ordered = [row for row in rows if row.people is not None and _decides(row.people)]
    one = [(row.people, outcome) for row in ordered for outcome, _ in row.verdicts]
    kept = [row for row in rows if row.label.consistent and row.people is not None]
    means = [(row.people, row.label.mean) for row in ordered if row.label.mean is not None]
    return Quality(
        judge=judge,
        task=task,
        capability=capability,
        pairs=len(rows),
        consistency=_share(row.label.consistent for row in both),
        shown_first=_share((outcome == Outcome.FIRST) == given for outcome, given in decided),
        unparseable=_share(outcome == Outcome.UNPARSEABLE for outcome in calls),
        refused=_share(outcome == Outcome.REFUSED for outcome in calls),
        failed=_share(outcome == Outcome.FAILED for outcome in calls),
        open=_share(outcome == Outcome.OPEN for outcome in calls),
        longer=_longer(rows, lambda row: row.label.mean),
        longer_people=_longer(rows, lambda row: {Outcome.FIRST: 1.0, Outcome.SECOND: 0.0}.get(row.people)),  # pyright: ignore
        people=len(ordered),
        agreement_one=_share(_agrees(said, theirs) for theirs, said in one),
        agreement_both=_share(_agrees(row.label.given, row.people) for row in ordered if row.label.consistent),
        agreement_mean=_share(_agrees(likelier(mean), theirs) for theirs, mean in means),
        kappa_one=_finite(kappa(_table((row, said) for row in rows for said, _ in row.verdicts))),
        kappa_both=_finite(kappa(_table((row, row.label.given) for row in kept))),
        kappa_interval=_interval(kept),
        prompt_tokens=sum(row.label.prompt_tokens for row in rows),
        completion_tokens=sum(row.label.completion_tokens for row in rows),
        cost=sum(row.label.cost for row in rows),
    )


def _decides(outcome: Outcome) -> bool:
    return outcome in (Outcome.FIRST, Outcome.SECOND)


def _agrees(said: Outcome, people: Outcome | None) -> float:
    return 0.5 if said == Outcome.TIE else float(said == people)


def _share(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _longer(rows: Sequence[_Row], leaning: Callable[[_Row], float | None]) -> float | None:
    """How often the longer of two responses of unlike length is the preferred one."""
    found = []
    for row in rows:
        p = leaning(row)
        if row.group is None or p is None or p == 0.5:
            continue
        lengths = [len(row.group.responses[i]) for i in (row.label.first, row.label.second)]
        if lengths[0] != lengths[1]:
            found.append((p > 0.5) == (lengths[0] > lengths[1]))
    return _share(found)


# --- Cohen's κ -----------------------------------------------------------------------------------------------------


def kappa(tables: Array) -> Array:
    """Cohen's κ of tables (…, 3, 3) of two raters' verdicts: (p_o − p_e) / (1 − p_e); nan where that is 0 / 0."""
    total = tables.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(tables, axis1=-2, axis2=-1) / total
        expected = (tables.sum(-1) * tables.sum(-2)).sum(-1) / total**2
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _table(pairs: Iterable[tuple[_Row, Outcome]]) -> Array:
    table = np.zeros((3, 3))
    for row, said in pairs:
        if row.people is not None:
            table[_ORDER.index(row.people), _ORDER.index(said)] += 1
    return table


def _interval(rows: Sequence[_Row]) -> tuple[float, float] | None:
    """By resampling prompts: the pairs of one prompt are not independent."""
    by_prompt: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        if row.group is not None:
            by_prompt[prompt_key(row.group.prompt)].append(row)
    if len(by_prompt) < 2:
        return None
    tables = np.stack([_table((row, row.label.given) for row in members) for members in by_prompt.values()])
    rng, count = np.random.default_rng(0), len(tables)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    found = kappa(np.einsum("rp,pij->rij", drawn, tables))
    found = found[np.isfinite(found)]
    return tuple(np.quantile(found, [0.025, 0.975]).tolist()) if len(found) else None  # pyright: ignore


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
