"""Measure labels by judge, task and capability, and merge the labels of several judges.

Contingency tables have people's verdict in rows and the judge's in columns: first, second, tie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..bootstrap import interval, resampled_sums
from ..labels import OVERALL, PROBABILITIES, CapabilityLabel, Outcome, content_digest, likelier
from ..schema import Group, prompt_key

Array = NDArray[np.float64]
_ORDER = (Outcome.FIRST, Outcome.SECOND, Outcome.TIE)
_RESAMPLES = 1000
_MAX_ITERATIONS, _TOLERANCE = 200, 1e-6
_SMOOTHING = 0.5  # votes added to every cell of a confusion matrix, so that no verdict has probability zero


@dataclass(frozen=True)
class LabelQuality:
    """Statistics of one judge's labels on one capability. Shares of an empty set are None.

    Attributes:
        pairs: number of labels.
        consistency: share of labels with equal verdicts in both orders, among those with a verdict in both.
        shown_first: share of verdicts in favor of the response shown first, ties left out; 0.5 without position bias.
        unparseable, refused, failed, open: shares of all calls.
        longer, longer_people: share of pairs on which the longer response is preferred, by the judge (mean of both
            orders) and by people.
        people: number of pairs that people order.
        agreement_one: share of these on which the verdict of a single order equals people's; a tie counts half.
        agreement_both: the same for pairs on which both orders agree.
        agreement_mean: the same for the mean of both orders, on all pairs with a mean.
        kappa_one, kappa_both: Cohen's κ with people over first, second and tie, for a single order and for pairs on
            which both orders agree.
        kappa_interval: 95 % interval of `kappa_both`, by bootstrap over prompts; None if all resamples are equal, which
            says nothing.
        prompt_tokens, completion_tokens, cost: totals of all calls.
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
class _ComparedLabel:
    """A label beside what people say about its pair; `group` is None if the data do not have its texts."""

    label: CapabilityLabel
    group: Group | None
    people: Outcome | None

    @property
    def verdicts(self) -> list[tuple[Outcome, bool]]:
        """The readable verdicts, and whether `first` was shown first."""
        both = ((self.label.given, True), (self.label.swapped, False))
        return [(outcome, given) for outcome, given in both if outcome in PROBABILITIES]


def label_quality(labels: Iterable[CapabilityLabel], groups: Iterable[Group]) -> list[LabelQuality]:
    """Return an entry per judge, task and capability, and one over all capabilities of a judge and task."""
    by_id = {(group.id, content_digest(group)): group for group in groups}
    compared: dict[tuple[str, str, str], list[_ComparedLabel]] = defaultdict(list)
    for label in labels:
        people, group = None, by_id.get((label.group, label.content))
        if group is not None and group.differ(label.first, label.second):
            grades = group.grades if label.capability == OVERALL else group.capabilities.get(label.capability)
            first, second = (grades[label.first], grades[label.second]) if grades else (None, None)
            if first is not None and second is not None:
                people = Outcome.TIE if first == second else Outcome.FIRST if first > second else Outcome.SECOND
        compared[label.judge, label.task, label.capability].append(_ComparedLabel(label, group, people))
    for (judge, task, capability), rows in list(compared.items()):
        if capability != OVERALL:
            compared[judge, task, "all capabilities"] += rows
    return [_quality(*key, compared[key]) for key in sorted(compared)]


def _quality(judge: str, task: str, capability: str, rows: Sequence[_ComparedLabel]) -> LabelQuality:
    calls = [outcome for row in rows for outcome in (row.label.given, row.label.swapped)]
    both = [row for row in rows if len(row.verdicts) == 2]
    decided = [(outcome, given) for row in rows for outcome, given in row.verdicts if outcome != Outcome.TIE]
    ordered = [row for row in rows if row.people in (Outcome.FIRST, Outcome.SECOND)]
    single = [(row, outcome) for row in rows for outcome, _ in row.verdicts]
    kept = [(row, row.label.given) for row in rows if row.label.consistent and row.people is not None]
    means = [(row, likelier(row.label.mean)) for row in ordered if row.label.mean is not None]
    outcomes = (Outcome.UNPARSEABLE, Outcome.REFUSED, Outcome.FAILED, Outcome.OPEN)
    return LabelQuality(
        judge=judge,
        task=task,
        capability=capability,
        pairs=len(rows),
        consistency=_share(row.label.consistent for row in both),
        shown_first=_share((outcome == Outcome.FIRST) == given for outcome, given in decided),
        **{outcome.value: _share(call == outcome for call in calls) for outcome in outcomes},
        longer=_longer(rows, lambda row: row.label.mean),
        longer_people=_longer(rows, lambda row: PROBABILITIES.get(row.people)),  # pyright: ignore
        people=len(ordered),
        agreement_one=_agreement(single),
        agreement_both=_agreement(kept),
        agreement_mean=_agreement(means),
        kappa_one=_finite(kappa(_table(single))),
        kappa_both=_finite(kappa(_table(kept))),
        kappa_interval=_interval(kept),
        prompt_tokens=sum(row.label.prompt_tokens for row in rows),
        completion_tokens=sum(row.label.completion_tokens for row in rows),
        cost=sum(row.label.cost for row in rows),
    )


def _share(values: Iterable[float]) -> float | None:
    items = list(values)
    return sum(items) / len(items) if items else None


def _agreement(verdicts: Iterable[tuple[_ComparedLabel, Outcome]]) -> float | None:
    """Return the share of verdicts that equal people's, on the pairs that people order; a tie counts half."""
    return _share(
        0.5 if verdict == Outcome.TIE else float(verdict == row.people)
        for row, verdict in verdicts
        if row.people in (Outcome.FIRST, Outcome.SECOND)
    )


def _longer(rows: Sequence[_ComparedLabel], preference: Callable[[_ComparedLabel], float | None]) -> float | None:
    """Return the share of pairs of unequal length on which the longer response is preferred."""
    longer_wins = []
    for row in rows:
        if row.group is not None and (p := preference(row)) not in (None, 0.5):
            first, second = (len(row.group.responses[i]) for i in (row.label.first, row.label.second))
            if first != second:
                longer_wins.append((p > 0.5) == (first > second))
    return _share(longer_wins)


# --- Cohen's κ -----------------------------------------------------------------------------------------------------


def kappa(tables: Array) -> Array:
    """Return Cohen's κ, (p_o − p_e) / (1 − p_e), of tables (…, 3, 3) of two raters' verdicts; nan if it is 0 / 0."""
    total = tables.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(tables, axis1=-2, axis2=-1) / total
        expected = (tables.sum(-1) * tables.sum(-2)).sum(-1) / total**2
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _table(verdicts: Iterable[tuple[_ComparedLabel, Outcome]]) -> Array:
    table = np.zeros((3, 3))
    for row, verdict in verdicts:
        if row.people is not None:
            table[_ORDER.index(row.people), _ORDER.index(verdict)] += 1
    return table


def _finite(value: Array) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(verdicts: Sequence[tuple[_ComparedLabel, Outcome]]) -> tuple[float, float] | None:
    # The bootstrap is over prompts, because the pairs of one prompt are not independent.
    by_prompt: dict[str, list[tuple[_ComparedLabel, Outcome]]] = defaultdict(list)
    for row, verdict in verdicts:
        if row.group is not None:
            by_prompt[prompt_key(row.group.prompt)].append((row, verdict))
    if len(by_prompt) < 2:
        return None
    tables = np.stack([_table(members).ravel() for members in by_prompt.values()])
    kappas = kappa(resampled_sums(tables, resamples=_RESAMPLES).reshape(-1, 3, 3))
    kappas = kappas[np.isfinite(kappas)]
    low, high = interval(kappas).tolist() if len(kappas) else (0.0, 0.0)
    return (low, high) if low < high else None


# --- several judges ------------------------------------------------------------------------------------------------


def merge_judges(labels: Sequence[CapabilityLabel]) -> tuple[list[CapabilityLabel], dict[str, float]]:
    """Merge the labels of several judges by the Dawid–Skene model (Applied Statistics 28, 1979), fitted by EM.

    Each capability is merged by itself. A judge is one rater, by the mean of its two orders: the model assumes that
    raters err independently, which two orders of one judge do not. At least three judges are required to estimate which
    of them is more accurate.

    Returns:
        labels of the judge `consensus`, whose `p_given` and `p_swapped` are the estimated probability that `first` is
        better (a tie counts half); and judge → estimated accuracy, averaged over capabilities.
    """
    merged: list[CapabilityLabel] = []
    accuracies: dict[str, list[float]] = defaultdict(list)
    by_capability: dict[tuple[str, str], list[CapabilityLabel]] = defaultdict(list)
    for label in labels:
        by_capability[label.task, label.capability].append(label)
    for capability_labels in by_capability.values():
        items: dict[tuple[str, str, int, int], CapabilityLabel] = {}
        verdicts: dict[str, dict[tuple[str, str, int, int], int]] = defaultdict(dict)
        for label in capability_labels:
            item = (label.group, label.content, label.first, label.second)
            items.setdefault(item, label)
            if label.mean is not None:
                verdicts[label.judge][item] = _ORDER.index(likelier(label.mean))
        votes = np.zeros((len(verdicts), len(items), 3))
        for j, by_item in enumerate(verdicts.values()):
            for n, item in enumerate(items):
                if item in by_item:
                    votes[j, n, by_item[item]] = 1
        posterior, confusion = dawid_skene(votes)
        for j, judge in enumerate(verdicts):
            accuracies[judge].append(float((posterior.mean(0) * np.diag(confusion[j])).sum()))
        for label, count, row in zip(items.values(), votes.sum((0, 2)), posterior, strict=True):
            if count:
                outcome, p = _ORDER[int(np.argmax(row))], float(row[0] + row[2] / 2)
                verdict = {"given": outcome, "swapped": outcome, "p_given": p, "p_swapped": p}
                free = {"prompt_tokens": 0.0, "completion_tokens": 0.0, "cost": 0.0}
                merged.append(replace(label, judge="consensus", **verdict, **free))
    return merged, {judge: float(np.mean(values)) for judge, values in accuracies.items()}


def dawid_skene(votes: Array) -> tuple[Array, Array]:
    """Estimate the true verdicts and the confusion matrices of J judges on n items with 3 verdicts.

    Args:
        votes: (J, n, 3), 1 where a judge gave that verdict; all 0 where it gave none.

    Returns:
        posterior: (n, 3), probability of each verdict; rows sum to 1.
        confusion: (J, 3, 3), [j, true verdict, given verdict]; rows sum to 1.
    """
    posterior = votes.sum(0) + 1e-9
    posterior /= posterior.sum(1, keepdims=True)
    confusion = np.zeros((len(votes), 3, 3))
    for _ in range(_MAX_ITERATIONS):
        confusion = np.einsum("nt,jns->jts", posterior, votes) + _SMOOTHING
        confusion /= confusion.sum(2, keepdims=True)
        prior = posterior.mean(0) + 1e-9
        log_joint = np.log(prior) + np.einsum("jns,jts->nt", votes, np.log(confusion))
        updated = np.exp(log_joint - log_joint.max(1, keepdims=True))
        updated /= updated.sum(1, keepdims=True)
        change = float(np.abs(updated - posterior).max())
        posterior = updated
        if change < _TOLERANCE:
            break
    return posterior, confusion
