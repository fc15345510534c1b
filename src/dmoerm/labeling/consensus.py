"""One label out of several judges': the Dawid–Skene model (Applied Statistics 28, 1979), by expectation maximization.

A judge is one voter, by the mean of its two orders: the model takes voters to err independently of one another, and
two orders of one judge do not. It takes three judges to tell which of them is the better one.

Shapes: J judges, n items, 3 verdicts (first, second, tie).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..labels import Label, Outcome, likelier

Array = NDArray[np.float64]
NAME = "consensus"
_ORDER = (Outcome.FIRST, Outcome.SECOND, Outcome.TIE)
_ROUNDS, _CLOSE = 200, 1e-6
_SMOOTHING = 0.5  # votes in every cell before the first is counted: no verdict is ever impossible


def consensus(labels: Sequence[Label]) -> tuple[list[Label], dict[str, float]]:
    """What the judges come to, capability by capability, and how often each of them is right by that estimate.

    Returns:
        labels of the judge `consensus`, `p_given` and `p_swapped` both the estimated probability that `first` is
        better (a tie counts half); judge → estimated accuracy.
    """
    found: list[Label] = []
    right: dict[str, list[float]] = defaultdict(list)
    parts: dict[tuple[str, str], list[Label]] = defaultdict(list)
    for label in labels:
        parts[label.task, label.capability].append(label)
    for part in parts.values():
        made, accuracy = _part(part)
        found += made
        for voter, value in accuracy.items():
            right[voter].append(value)
    return found, {voter: float(np.mean(values)) for voter, values in right.items()}


def _part(labels: Sequence[Label]) -> tuple[list[Label], dict[str, float]]:
    items: list[Label] = []
    places: dict[tuple[str, str, int, int], int] = {}
    votes: dict[str, dict[int, int]] = defaultdict(dict)
    for label in labels:
        index = places.setdefault((label.group, label.content, label.first, label.second), len(items))
        if index == len(items):
            items.append(label)
        if label.mean is not None:
            votes[label.judge][index] = _ORDER.index(likelier(label.mean))
    tensor = np.zeros((len(votes), len(items), 3))
    for j, cast in enumerate(votes.values()):
        for index, verdict in cast.items():
            tensor[j, index, verdict] = 1
    posterior, tables = dawid_skene(tensor)
    accuracy = {voter: float((posterior.mean(0) * np.diag(tables[j])).sum()) for j, voter in enumerate(votes)}
    made = [_label(first, posterior[i]) for i, first in enumerate(items) if tensor[:, i].any()]
    return made, accuracy


def dawid_skene(votes: Array) -> tuple[Array, Array]:
    """The probability of each verdict for each item, and each judge's table of errors.

    Args:
        votes: (J, n, 3), 1 where a judge gave that verdict; all 0 where it gave none.

    Returns:
        posterior (n, 3), rows add up to 1; tables (J, 3, 3), [j, truth, said], rows add up to 1.
    """
    posterior = votes.sum(0) + 1e-9
    posterior /= posterior.sum(1, keepdims=True)
    tables = np.zeros((len(votes), 3, 3))
    for _ in range(_ROUNDS):
        tables = np.einsum("nt,jns->jts", posterior, votes) + _SMOOTHING
        tables /= tables.sum(2, keepdims=True)
        prior = posterior.mean(0) + 1e-9
        logs = np.log(prior) + np.einsum("jns,jts->nt", votes, np.log(tables))
        updated = np.exp(logs - logs.max(1, keepdims=True))
        updated /= updated.sum(1, keepdims=True)
        moved = float(np.abs(updated - posterior).max())
        posterior = updated
        if moved < _CLOSE:
            break
    return posterior, tables


def _label(label: Label, posterior: Array) -> Label:
    p = float(posterior[0] + posterior[2] / 2)
    outcome = _ORDER[int(posterior.argmax())]
    nothing = {"prompt_tokens": 0.0, "completion_tokens": 0.0, "cost": 0.0}
    return replace(label, judge=NAME, given=outcome, swapped=outcome, p_given=p, p_swapped=p, **nothing)
