"""Merge the labels of several judges by the Dawid–Skene model (Applied Statistics 28, 1979), fitted by EM.

A judge is one rater, by the mean of its two orders: the model assumes that raters err independently, which two orders
of one judge do not. At least three judges are required to estimate which of them is more accurate.

The model is implemented here because crowd-kit adds 75 MB (scikit-learn, nltk) and does not smooth the confusion
matrices, which capabilities with few pairs need.

Shapes: J judges, n items, 3 verdicts (first, second, tie).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..labels import CapabilityLabel, Outcome, likelier

Array = NDArray[np.float64]
NAME = "consensus"
_ORDER = (Outcome.FIRST, Outcome.SECOND, Outcome.TIE)
_MAX_ITERATIONS, _TOLERANCE = 200, 1e-6
_SMOOTHING = 0.5  # votes added to every cell of a confusion matrix, so that no verdict has probability zero


def merge_judges(labels: Sequence[CapabilityLabel]) -> tuple[list[CapabilityLabel], dict[str, float]]:
    """Merge the labels of several judges, one capability at a time.

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
        consensus, accuracy = _merge_capability(capability_labels)
        merged += consensus
        for judge, value in accuracy.items():
            accuracies[judge].append(value)
    return merged, {judge: float(np.mean(values)) for judge, values in accuracies.items()}


def _merge_capability(labels: Sequence[CapabilityLabel]) -> tuple[list[CapabilityLabel], dict[str, float]]:
    items: list[CapabilityLabel] = []
    indices: dict[tuple[str, str, int, int], int] = {}
    verdicts: dict[str, dict[int, int]] = defaultdict(dict)
    for label in labels:
        index = indices.setdefault((label.group, label.content, label.first, label.second), len(items))
        if index == len(items):
            items.append(label)
        if label.mean is not None:
            verdicts[label.judge][index] = _ORDER.index(likelier(label.mean))
    votes = np.zeros((len(verdicts), len(items), 3))
    for j, by_item in enumerate(verdicts.values()):
        for index, verdict in by_item.items():
            votes[j, index, verdict] = 1
    posterior, confusion = dawid_skene(votes)
    accuracy = {judge: float((posterior.mean(0) * np.diag(confusion[j])).sum()) for j, judge in enumerate(verdicts)}
    return [_label(item, posterior[i]) for i, item in enumerate(items) if votes[:, i].any()], accuracy


def dawid_skene(votes: Array) -> tuple[Array, Array]:
    """Estimate the true verdicts and the judges' confusion matrices.

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


def _label(item: CapabilityLabel, posterior: Array) -> CapabilityLabel:
    p = float(posterior[0] + posterior[2] / 2)
    outcome = _ORDER[int(posterior.argmax())]
    usage = {"prompt_tokens": 0.0, "completion_tokens": 0.0, "cost": 0.0}
    return replace(item, judge=NAME, given=outcome, swapped=outcome, p_given=p, p_swapped=p, **usage)
