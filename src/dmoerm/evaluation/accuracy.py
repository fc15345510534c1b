"""Accuracy: the share of human-ordered pairs that a model orders the same way, with intervals over prompts and seeds.

Pairs of one prompt are not independent, so the bootstrap resamples *prompts* within each task. All methods use the same
resamples, so their differences are paired. Runs of several seeds are averaged; a prompt that several seeds hold out is
drawn for all of them together. The seeds are resampled too, so that an interval includes the draw of the training part.

Shapes: S seeds, P prompts, B resamples, M methods.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np

from ..bootstrap import RESAMPLES, interval, resampled_sums, run_weights
from ..schema import Pair, prompt_key
from .results import MEAN, MEAN_HUMAN, Difference, Estimate
from .scored_groups import ScoredGroup

_Z = 1.96  # the standard normal distribution's 97.5 % quantile
OrderedPairs = tuple[str, Sequence[Pair], Mapping[str, np.ndarray]]
"""A group's prompt, its human-ordered pairs, and method → scores."""


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
    pairs: dict[str, int] = {}
    right: dict[str, dict[str, float]] = {}
    for prompt, ordered, scores in rows:
        if ordered:
            pairs[prompt] = pairs.get(prompt, 0) + len(ordered)
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


def join(seeds: Sequence[PairCounts]) -> PairCounts:
    """Join the counts of several seeds, which must have the same methods."""
    prompts = list(dict.fromkeys(prompt for counts in seeds for prompt in counts.prompts))
    columns = [[prompts.index(prompt) for prompt in counts.prompts] for counts in seeds]

    def aligned(rows: Sequence[np.ndarray]) -> np.ndarray:
        wide = [np.zeros((len(row), len(prompts))) for row in rows]
        for row, column, filled in zip(rows, columns, wide, strict=True):
            filled[:, column] = row
        return np.concatenate(wide)

    methods = seeds[0].right
    return PairCounts(
        prompts,
        aligned([counts.pairs for counts in seeds]),
        {method: aligned([counts.right[method] for counts in seeds]) for method in methods},
    )


def right_pairs(pairs: Sequence[Pair], scores: np.ndarray) -> float:
    """Count the pairs that the scores order as people do; a tie counts 0.5."""
    margins = np.array([scores[pair.better] - scores[pair.worse] for pair in pairs])
    return float((margins > 0).sum() + 0.5 * (margins == 0).sum())


def overall_counts(scored: Sequence[ScoredGroup]) -> dict[str, PairCounts]:
    """Count the overall pairs of each task under every method; leave out tasks without an ordered pair."""
    counts_by_task = {
        task: count_pairs((prompt_key(s.group.prompt), s.group.pairs(), s.rewards) for s in members)
        for task, members in by_task(scored).items()
    }
    return {task: counts for task, counts in counts_by_task.items() if counts is not None}


def capability_counts(scored: Sequence[ScoredGroup]) -> dict[str, dict[str, PairCounts]]:
    """Count each task's pairs on each capability under its expert; leave out capabilities without an ordered pair."""
    counts_by_task: dict[str, dict[str, PairCounts]] = {}
    for task, members in by_task(scored).items():
        for name in members[0].capabilities:
            rows = ((prompt_key(s.group.prompt), s.group.pairs(name), {name: s.capabilities[name]}) for s in members)
            if counts := count_pairs(rows):
                counts_by_task.setdefault(task, {})[name] = counts
    return counts_by_task


def by_task(scored: Sequence[ScoredGroup]) -> dict[str, list[ScoredGroup]]:
    """Return the groups of each task, tasks in alphabetical order."""
    groups: dict[str, list[ScoredGroup]] = {}
    for group in scored:
        groups.setdefault(group.task, []).append(group)
    return dict(sorted(groups.items()))


def compare(
    counts: Mapping[str, PairCounts], derived: Sequence[str] = (), seed: int = 0, resamples: int = RESAMPLES
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, Difference]]]:
    """Estimate the accuracy of every method and the difference of `dmoerm` to each other method.

    Args:
        counts: task → counts, at least one task. A method without scores for some task has no mean.
        derived: the tasks whose overall scores were not given by people; if these are some of the tasks, `mean_human`
            is the mean over the others.

    Returns:
        method → task → estimate, and `dmoerm - method` → task → difference; both also have an entry `mean`.
    """
    shares = {task: _Shares(each, resample(each, _task_seed(task, seed), resamples)) for task, each in counts.items()}
    all_sets = {name: [shares[task] for task in tasks] for name, tasks in _sets(list(counts), derived).items()}
    methods = list(dict.fromkeys(method for each in counts.values() for method in each.right))
    sets = {
        method: {name: part for name, part in all_sets.items() if all(method in task.drawn for task in part)}
        for method in methods
    }
    others = [method for method in methods if method != "dmoerm"] if "dmoerm" in methods else []
    return (
        {method: {name: _estimate(method, part) for name, part in sets[method].items()} for method in methods},
        {
            f"dmoerm - {other}": {name: _difference("dmoerm", other, part) for name, part in sets[other].items()}
            for other in others
        },
    )


def _sets(tasks: Sequence[str], derived: Sequence[str]) -> dict[str, list[str]]:
    """Return, for each entry of a result, the tasks over which it is the mean."""
    sets = {task: [task] for task in tasks} | {MEAN: list(tasks)}
    human = [task for task in tasks if task not in derived]
    return sets | {MEAN_HUMAN: human} if 0 < len(human) < len(tasks) else sets


def capability_accuracy(
    scored: Sequence[ScoredGroup], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, Estimate]]:
    """Estimate the accuracy of each capability's expert; leave out capabilities without human-ordered pairs."""
    estimates: dict[str, dict[str, Estimate]] = {}
    for task, capabilities in capability_counts(scored).items():
        for name, counts in capabilities.items():
            drawn = resample(counts, _task_seed(f"{task}/{name}", seed), resamples)
            estimates.setdefault(task, {})[name] = _estimate(name, [_Shares(counts, drawn)])
    return estimates


def pooled_accuracy(
    rows: Iterable[OrderedPairs], method: str, name: str, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate | None:
    """Estimate a method's accuracy on the pairs of all rows together; None if there is no pair.

    Args:
        name: of these pairs, from which the random stream is derived.
    """
    counts = count_pairs(rows)
    if counts is None:
        return None
    return _estimate(method, [_Shares(counts, resample(counts, _task_seed(name, seed), resamples))])


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


def _task_seed(task: str, seed: int) -> list[int]:
    """Return a random stream for the task, which does not depend on the other tasks."""
    return [seed, zlib.crc32(task.encode())]


class _Shares(NamedTuple):
    """The counts of one task, and method → accuracy on each of the resamples (B,)."""

    counts: PairCounts
    drawn: Mapping[str, np.ndarray]

    def value(self, method: str) -> float:
        """Return the method's accuracy on the data."""
        return float((self.counts.right[method].sum(1) / self.counts.pairs.sum(1)).mean())


def _estimate(method: str, tasks: Sequence[_Shares]) -> Estimate:
    low, high = _interval(np.mean([task.drawn[method] for task in tasks], axis=0), tasks, least=0.0)
    return Estimate(
        value=fmean(task.value(method) for task in tasks),
        low=float(low),
        high=float(high),
        pairs=sum(int(task.counts.pairs.sum()) for task in tasks),
        prompts=_prompts(tasks),
    )


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
    low, high = map(float, interval(drawn, _prompts(tasks)))
    if high - low > 1e-9:
        return low, high
    prompts = len(tasks) ** 2 / sum(1 / len(task.counts.prompts) for task in tasks)
    unseen = _Z**2 / (prompts + _Z**2)
    return max(least, low - unseen), min(1.0, high + unseen)


def _prompts(tasks: Sequence[_Shares]) -> int:
    return sum(len(task.counts.prompts) for task in tasks)


def _difference(first: str, second: str, tasks: Sequence[_Shares]) -> Difference:
    drawn = np.mean([task.drawn[first] - task.drawn[second] for task in tasks], axis=0)
    low, high = _interval(drawn, tasks, least=-1.0)
    return Difference(value=fmean(t.value(first) - t.value(second) for t in tasks), low=float(low), high=float(high))
