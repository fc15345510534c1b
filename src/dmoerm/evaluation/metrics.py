"""Metrics of scored groups: accuracy with intervals over prompts and seeds, router, calibration, length.

Accuracy is the share of human-ordered pairs that a model orders the same way. Pairs of one prompt are not independent,
so the bootstrap resamples *prompts* within each task. All methods use the same resamples, so their differences are
paired. Runs of several seeds are averaged; a prompt that several seeds hold out is drawn for all of them together. The
seeds are resampled too, so an interval includes the draw of the training part.

Shapes: S seeds, P prompts, B resamples, M methods.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import rankdata

from ..bootstrap import RESAMPLES, interval, resampled_sums, run_weights
from ..schema import Pair, prompt_key
from ..training.router import calibration_error
from .results import MEAN, MEAN_HUMAN, Bin, CalibrationResult, Difference, Estimate, LengthBias, RouterResult
from .scored_groups import ScoredGroup

_Z = 1.96  # the standard normal distribution's 97.5 % quantile
_BINS = 10
OrderedPairs = tuple[str, Sequence[Pair], Mapping[str, np.ndarray]]
"""A group's prompt, its human-ordered pairs, and method → scores."""


# --- counts of pairs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairCounts:
    """Counts of human-ordered pairs per prompt, and of those that each method orders the same way.

    Attributes:
        prompts: (P,), the prompts' keys.
        pairs: (S, P); 0 if a seed does not hold the prompt out.
        right: method → (S, P); a tie between the method's scores counts 0.5.
    """

    prompts: Sequence[str]
    pairs: np.ndarray
    right: Mapping[str, np.ndarray]


def count_pairs(rows: Iterable[OrderedPairs]) -> PairCounts | None:
    """Count pairs by prompt; skip rows without an ordered pair. Return None if no row has one."""
    pairs: Counter[str] = Counter()
    right: dict[str, dict[str, float]] = {}
    for prompt, ordered, scores in rows:
        if ordered:
            pairs[prompt] += len(ordered)
            for method, values in scores.items():
                by_prompt = right.setdefault(method, {})
                by_prompt[prompt] = by_prompt.get(prompt, 0.0) + right_pairs(ordered, values)
    if not pairs:
        return None
    return PairCounts(
        list(pairs),
        np.array([list(pairs.values())], dtype=float),
        {method: np.array([[by_prompt[prompt] for prompt in pairs]]) for method, by_prompt in right.items()},
    )


def right_pairs(pairs: Sequence[Pair], scores: np.ndarray) -> float:
    """Count the pairs that the scores order as the human labels do; a tie counts 0.5."""
    margins = np.array([scores[pair.better] - scores[pair.worse] for pair in pairs])
    return float((margins > 0).sum() + 0.5 * (margins == 0).sum())


def join(seeds: Sequence[PairCounts]) -> PairCounts:
    """Join the counts of several seeds, which must have the same methods."""
    prompts = list(dict.fromkeys(prompt for counts in seeds for prompt in counts.prompts))
    columns = [[prompts.index(prompt) for prompt in counts.prompts] for counts in seeds]

    def aligned(rows: Sequence[np.ndarray]) -> np.ndarray:
        wide = [np.zeros((len(row), len(prompts))) for row in rows]
        for row, column, filled in zip(rows, columns, wide, strict=True):
            filled[:, column] = row
        return np.concatenate(wide)

    return PairCounts(
        prompts,
        aligned([counts.pairs for counts in seeds]),
        {method: aligned([counts.right[method] for counts in seeds]) for method in seeds[0].right},
    )


def _by_task(scored: Sequence[ScoredGroup]) -> dict[str, list[ScoredGroup]]:
    groups: dict[str, list[ScoredGroup]] = {}
    for group in scored:
        groups.setdefault(group.task, []).append(group)
    return dict(sorted(groups.items()))


def overall_counts(scored: Sequence[ScoredGroup]) -> dict[str, PairCounts]:
    """Count the overall pairs of each task under every method; leave out tasks without an ordered pair."""
    rows = {
        task: ((prompt_key(s.group.prompt), s.group.pairs(), s.rewards) for s in members)
        for task, members in _by_task(scored).items()
    }
    return {task: counts for task, each in rows.items() if (counts := count_pairs(each))}


def capability_counts(scored: Sequence[ScoredGroup]) -> dict[str, dict[str, PairCounts]]:
    """Count each task's pairs on each capability under its expert; leave out capabilities without an ordered pair."""
    counts_by_task: dict[str, dict[str, PairCounts]] = {}
    for task, members in _by_task(scored).items():
        for name in members[0].capabilities:
            rows = ((prompt_key(s.group.prompt), s.group.pairs(name), {name: s.capabilities[name]}) for s in members)
            if counts := count_pairs(rows):
                counts_by_task.setdefault(task, {})[name] = counts
    return counts_by_task


# --- accuracy ------------------------------------------------------------------------------------------------------


def compare(
    counts: Mapping[str, PairCounts], derived: Sequence[str] = (), seed: int = 0, resamples: int = RESAMPLES
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, Difference]]]:
    """Estimate the accuracy of every method and the difference of `dmoerm` to each other method.

    Args:
        counts: task → counts, at least one task. A method without scores for some task has no mean.
        derived: tasks with overall scores that humans did not give. If these are some of the tasks, `mean_human` is
            the mean over the others.

    Returns:
        method → task → estimate, and `dmoerm - method` → task → difference; both also have an entry `mean`.
    """
    shares = {task: _Shares.of(task, each, seed, resamples) for task, each in counts.items()}
    entries = {task: [part] for task, part in shares.items()} | {MEAN: list(shares.values())}
    human = [part for task, part in shares.items() if task not in derived]
    if 0 < len(human) < len(shares):
        entries[MEAN_HUMAN] = human
    methods = list(dict.fromkeys(method for each in counts.values() for method in each.right))
    known = {
        method: {name: parts for name, parts in entries.items() if all(method in part.drawn for part in parts)}
        for method in methods
    }
    others = [method for method in methods if method != "dmoerm"] if "dmoerm" in methods else []
    return (
        {method: {name: _estimate(method, parts) for name, parts in known[method].items()} for method in methods},
        {
            f"dmoerm - {other}": {name: _difference("dmoerm", other, parts) for name, parts in known[other].items()}
            for other in others
        },
    )


def capability_accuracy(scored: Sequence[ScoredGroup], seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Estimate the accuracy of each capability's expert; leave out capabilities without human-ordered pairs."""
    return {
        task: {
            name: _estimate(name, [_Shares.of(f"{task}/{name}", counts, seed)]) for name, counts in capabilities.items()
        }
        for task, capabilities in capability_counts(scored).items()
    }


def pooled_accuracy(rows: Iterable[OrderedPairs], method: str, name: str, seed: int = 0) -> Estimate | None:
    """Estimate a method's accuracy on the pairs of all rows together; None if there is no pair.

    The name of these pairs seeds the bootstrap.
    """
    counts = count_pairs(rows)
    return counts and _estimate(method, [_Shares.of(name, counts, seed)])


def resample(counts: PairCounts, seed: int | Sequence[int], resamples: int = RESAMPLES) -> dict[str, np.ndarray]:
    """Compute each method's accuracy (B,) on B resamples of the P prompts and of the S seeds.

    The resamples of the seeds are the same for all tasks, because a seed trains one model for all of them.
    """
    seeds = len(counts.pairs)
    columns = np.concatenate([counts.pairs, *counts.right.values()]).T  # (P, S + M S)
    pairs, *right = resampled_sums(columns, seed, resamples).T.reshape(-1, seeds, resamples)
    weights = run_weights(seeds, resamples=resamples)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may contain no prompt of a seed with few prompts
        shares = {method: row / pairs for method, row in zip(counts.right, right, strict=True)}
        return {
            method: (np.where(np.isnan(row), np.nanmean(row, axis=0), row) * weights).sum(0)
            for method, row in shares.items()
        }


class _Shares(NamedTuple):
    """The counts of one task, and method → accuracy on each of the resamples (B,)."""

    counts: PairCounts
    drawn: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, name: str, counts: PairCounts, seed: int, resamples: int = RESAMPLES) -> _Shares:
        """Resample by a random stream of the name, which does not depend on the other tasks."""
        return cls(counts, resample(counts, [seed, zlib.crc32(name.encode())], resamples))

    def value(self, method: str) -> float:
        return float((self.counts.right[method].sum(1) / self.counts.pairs.sum(1)).mean())


def _estimate(method: str, tasks: Sequence[_Shares]) -> Estimate:
    low, high = _interval(np.mean([task.drawn[method] for task in tasks], axis=0), tasks, least=0.0)
    return Estimate(
        value=fmean(task.value(method) for task in tasks),
        low=low,
        high=high,
        pairs=sum(int(task.counts.pairs.sum()) for task in tasks),
        prompts=sum(len(task.counts.prompts) for task in tasks),
    )


def _difference(first: str, second: str, tasks: Sequence[_Shares]) -> Difference:
    drawn = np.mean([task.drawn[first] - task.drawn[second] for task in tasks], axis=0)
    low, high = _interval(drawn, tasks, least=-1.0)
    return Difference(value=fmean(t.value(first) - t.value(second) for t in tasks), low=low, high=high)


def _interval(drawn: np.ndarray, tasks: Sequence[_Shares], least: float) -> tuple[float, float]:
    """Return the 95 % interval of a share or a difference of shares, from its resamples.

    If all prompts have the same share, such as 1, so have all resamples: they do not show how little a few prompts say.
    The interval then extends by the largest share of other prompts that n prompts without any can come from: the end of
    Wilson's interval for 0 of n, z² / (n + z²). For several tasks n is the size of one sample whose mean would vary as
    much, T² / Σ 1 / n_t.

    Args:
        drawn: (B,).
        least: the lowest possible value; the highest is 1.
    """
    sizes = [len(task.counts.prompts) for task in tasks]
    low, high = map(float, interval(drawn, sum(sizes)))
    if high - low > 1e-9:
        return low, high
    unseen = _Z**2 / (len(sizes) ** 2 / sum(1 / size for size in sizes) + _Z**2)
    return max(least, low - unseen), min(1.0, high + unseen)


# --- router, calibration, length -----------------------------------------------------------------------------------


def router_result(scored: Sequence[ScoredGroup]) -> RouterResult:
    """Measure accuracy, calibration, fallback share and confusion of the router on the distinct prompts with tasks."""
    known = list({(prompt_key(s.group.prompt), s.group.task): s for s in scored if s.group.task}.values())
    confusion: dict[str, dict[str, int]] = {}
    for (task, likeliest), count in sorted(Counter((s.task, s.likeliest) for s in known).items()):
        confusion.setdefault(task, {})[likeliest] = count
    right = [float(s.likeliest == s.task) for s in known]
    ece = calibration_error(torch.tensor([max(s.route.values()) for s in known]), torch.tensor(right))
    return RouterResult(
        accuracy=fmean(right) if known else None,
        prompts=len(known),
        fallback=sum(s.chosen is None for s in known) / len(known) if known else None,
        ece=ece if known else None,
        confusion=confusion,
    )


def calibration_result(scored: Sequence[ScoredGroup]) -> CalibrationResult:
    """Measure the calibration of `dmoerm`'s win probability on the human-ordered pairs."""
    return reliability([p for s in scored for p in probabilities(s, s.rewards["dmoerm"] / s.temperature)])


def probabilities(scored: ScoredGroup, rewards: np.ndarray) -> list[float]:
    """Return σ(reward difference) of each human-ordered pair, the better response first."""
    return expit([rewards[pair.better] - rewards[pair.worse] for pair in scored.group.pairs()]).tolist()


def reliability(winner: Sequence[float], bins: int = _BINS) -> CalibrationResult:
    """Measure the calibration of the probabilities of the preferred responses.

    A pair's confidence is the probability of its likelier winner, 0.5 to 1; the bins divide that range evenly.
    """
    given = np.array(winner, dtype=float)
    confidence, right = np.maximum(given, 1 - given), np.where(given == 0.5, 0.5, given > 0.5)
    edges = np.linspace(0.5, 1, bins + 1)
    index = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    sums = [[(index == i).sum(), confidence[index == i].sum(), right[index == i].sum()] for i in range(bins)]
    return _calibration(edges, np.array(sums))


def pooled(results: Sequence[CalibrationResult]) -> CalibrationResult:
    """Pool several results over the same bins."""
    sums = [
        [[b.pairs, b.pairs * (b.confidence or 0), b.pairs * (b.accuracy or 0)] for b in result.bins]
        for result in results
    ]
    return _calibration([*(b.low for b in results[0].bins), 1.0], np.array(sums).sum(0))


def _calibration(edges: Sequence[float] | np.ndarray, sums: np.ndarray) -> CalibrationResult:
    """Return the calibration from sums over the pairs of each bin, (bins, 3): of 1, of confidence and of accuracy."""
    bins = tuple(
        Bin(
            low=low,
            high=high,
            pairs=int(n),
            confidence=confidence / n if n else None,
            accuracy=right / n if n else None,
        )
        for low, high, (n, confidence, right) in zip(edges, edges[1:], sums, strict=False)
    )
    total, confidence, right = sums.T
    return CalibrationResult(
        ece=float(np.abs(right - confidence).sum() / max(total.sum(), 1)), pairs=int(total.sum()), bins=bins
    )


def length_bias(scored: Sequence[ScoredGroup]) -> dict[str, LengthBias]:
    """Return method → mean correlation of its rewards with length; `human` is the correlation of the human grades.

    Compare a method with `human`, because longer answers may be better.
    """
    columns: dict[str, list[list[float]]] = {}
    for member in scored:
        lengths = np.array([len(text) for text in member.group.responses], dtype=float)
        scores = dict(member.rewards) | ({"human": np.array(member.group.grades)} if member.group.grades else {})
        for method, values in scores.items():
            if np.ptp(lengths) and np.ptp(values):
                both = ((rankdata(lengths), rankdata(values)), (lengths, values))
                columns.setdefault(method, []).append([np.corrcoef(*pair)[0, 1] for pair in both])
    return {
        method: LengthBias(
            spearman=fmean(row[0] for row in rows), pearson=fmean(row[1] for row in rows), groups=len(rows)
        )
        for method, rows in columns.items()
    }
