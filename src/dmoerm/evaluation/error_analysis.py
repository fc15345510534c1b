"""Which pairs `dmoerm` orders wrongly: the worst ones, accuracy by length and by agreement, doubtful labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from ..schema import Group, Pair, messages_of, prompt_key
from ..training.suspects import JudgedLabel
from .metrics import pooled_accuracy, probabilities
from .results import ErrorAnalysis, Estimate, LabelDoubts, ShownPair
from .scored_groups import ScoredGroup

T = TypeVar("T")
WORST = 20
"""Pairs that the results list."""
MAX_CHARACTERS = 400
"""Characters of a text in the results; the middle of longer ones is cut."""
_LONGER = 1.25  # times the length of the other response
_LENGTH_PARTS = ("people prefer the longer", "about equally long", "people prefer the shorter")
_AGREEMENT_PARTS = ("all annotators agree", "at least two thirds agree", "fewer agree")


def error_analysis(
    scored: Sequence[ScoredGroup], seed: int = 0, judged: Sequence[JudgedLabel] | None = None
) -> ErrorAnalysis:
    """List the preferences with the lowest probability, and measure accuracy on parts of the pairs.

    Args:
        judged: the labels of the training part, the most doubtful first, from `judge_labels`.
    """

    def by_part(part: Callable[[Group, Pair], str | None], names: Sequence[str]) -> dict[str, Estimate]:
        estimates: dict[str, Estimate] = {}
        for name in names:
            pairs = [[pair for pair in s.group.pairs() if part(s.group, pair) == name] for s in scored]
            rows = ((prompt_key(s.group.prompt), p, s.rewards) for s, p in zip(scored, pairs, strict=True))
            if (estimate := pooled_accuracy(rows, "dmoerm", name, seed)) is not None:
                estimates[name] = estimate
        return estimates

    wrong: list[tuple[float, ScoredGroup, Pair]] = []
    for s in scored:
        rows = zip(probabilities(s, s.rewards["dmoerm"] / s.temperature), s.group.pairs(), strict=True)
        wrong += [(probability, s, pair) for probability, pair in rows if probability < 0.5]
    wrong.sort(key=lambda entry: entry[0])
    worst: list[ShownPair] = []
    for probability, s, pair in _first_of_prompts(wrong, lambda entry: entry[1].group):
        both = [pair.better, pair.worse]
        deviations = None if s.uncertainty is None or np.isnan(s.uncertainty[both]).any() else s.uncertainty[both]
        numbers = {
            "rewards": tuple(s.rewards["dmoerm"][both]),
            "uncertainty": None if deviations is None else tuple(deviations),
            "capabilities": {name: tuple(scores[both]) for name, scores in s.capabilities.items()},
        }
        worst.append(_shown(s.group, pair, s.task, probability, **numbers))
    doubts = None
    if judged is not None:
        contradicted = [label for label in judged if label.probability < 0.5]
        least_probable = tuple(
            _shown(label.group, label.pair, label.task, label.probability, capability=label.capability)
            for label in _first_of_prompts(contradicted, lambda label: label.group)
        )
        doubts = LabelDoubts(judged=len(judged), contradicted=len(contradicted), worst=least_probable)
    return ErrorAnalysis(
        worst=tuple(worst),
        by_length=by_part(length_part, _LENGTH_PARTS),
        by_agreement=by_part(agreement_part, _AGREEMENT_PARTS),
        doubts=doubts,
    )


def _first_of_prompts(entries: Iterable[T], group_of: Callable[[T], Group]) -> list[T]:
    """Return the first entry of each prompt, at most `WORST`: a single prompt must not fill a list."""
    first: dict[str, T] = {}
    for entry in entries:
        first.setdefault(prompt_key(group_of(entry).prompt), entry)
    return list(first.values())[:WORST]


def _shown(group: Group, pair: Pair, task: str, probability: float, **others: Any) -> ShownPair:
    return ShownPair(
        id=group.id,
        task=task,
        prompt=shortened("\n".join(turn.text for turn in messages_of(group.prompt))),
        preferred=shortened(group.responses[pair.better]),
        other=shortened(group.responses[pair.worse]),
        probability=probability,
        **others,
    )


def shortened(text: str) -> str:
    """Return the text; without its middle if it is longer than `MAX_CHARACTERS`."""
    half = (MAX_CHARACTERS - 3) // 2
    return text if len(text) <= MAX_CHARACTERS else f"{text[:half]} … {text[-half:]}"


def length_part(group: Group, pair: Pair) -> str:
    """Return whether humans prefer the longer response, by 1.25 times in characters."""
    better, worse = (max(len(group.responses[index]), 1) for index in pair[:2])
    return _LENGTH_PARTS[0 if better >= _LONGER * worse else 2 if worse >= _LONGER * better else 1]


def agreement_part(group: Group, pair: Pair) -> str | None:
    """Return how many annotators with a preference share the label's; None with fewer than two such annotators."""
    people = group.annotators.get("overall", ())
    if not people or len(people[pair.better]) != len(people[pair.worse]):
        return None  # the two grades of an annotator cannot be matched
    grades = zip(people[pair.better], people[pair.worse], strict=True)
    votes = [a > b for a, b in grades if a is not None and b is not None and a != b]
    if len(votes) < 2:
        return None
    return _AGREEMENT_PARTS[0 if all(votes) else 1 if 3 * sum(votes) >= 2 * len(votes) else 2]
