"""What else a reward model is asked: does its router know the task, are its probabilities right, does length win?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from ..schema import prompt_key
from .results import Bin, CalibrationResult, LengthBias, RouterResult
from .scoring import ScoredGroup

BINS = 10


def router_result(scored: Sequence[ScoredGroup]) -> RouterResult:
    """Accuracy, share of fallbacks and confusion of the router, over the distinct prompts whose task is known."""
    known = list({(prompt_key(s.group.prompt), s.group.task): s for s in scored if s.group.task}.values())
    confusion: dict[str, dict[str, int]] = {}
    for one in sorted(known, key=lambda s: (s.task, s.likeliest)):
        row = confusion.setdefault(one.task, {})
        row[one.likeliest] = row.get(one.likeliest, 0) + 1
    right = sum(row.get(task, 0) for task, row in confusion.items())
    return RouterResult(
        accuracy=right / len(known) if known else None,
        prompts=len(known),
        fallback=sum(s.chosen is None for s in known) / len(known) if known else None,
        confusion=confusion,
    )


def calibration_result(scored: Sequence[ScoredGroup], bins: int = BINS) -> CalibrationResult:
    """Expected calibration error of `dmoerm`'s win probability over the human-ordered pairs.

    A pair's confidence is the probability of its likelier winner, 0.5 to 1; the bins divide that range evenly.
    """
    winner = np.array([p for s in scored for p in _probabilities(s)])  # of the response that people prefer
    confidence, right = np.maximum(winner, 1 - winner), np.where(winner == 0.5, 0.5, winner > 0.5)
    edges = np.linspace(0.5, 1, bins + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    found = tuple(_bin(edges[i], edges[i + 1], confidence[place == i], right[place == i]) for i in range(bins))
    gaps = [b.pairs * abs(b.accuracy - b.confidence) for b in found if b.accuracy is not None and b.confidence]
    return CalibrationResult(ece=float(sum(gaps) / max(len(winner), 1)), pairs=len(winner), bins=found)


def _probabilities(scored: ScoredGroup) -> list[float]:
    rewards = scored.rewards["dmoerm"]
    margins = [(rewards[pair.better] - rewards[pair.worse]) / scored.temperature for pair in scored.group.pairs()]
    return [float(1 / (1 + np.exp(-np.clip(margin, -60, 60)))) for margin in margins]


def _bin(low: float, high: float, confidence: np.ndarray, right: np.ndarray) -> Bin:
    empty = not len(confidence)
    return Bin(
        low=float(low),
        high=float(high),
        pairs=len(confidence),
        confidence=None if empty else float(confidence.mean()),
        accuracy=None if empty else float(right.mean()),
    )


def length_bias(scored: Sequence[ScoredGroup]) -> dict[str, LengthBias]:
    """Method → mean correlation of its rewards with length; `human` is the same for people's own grades.

    A model's bias is what goes beyond people's: longer answers may well be better ones.
    """
    columns: dict[str, list[tuple[float, float]]] = {}
    for one in scored:
        lengths = np.array([len(text) for text in one.group.responses], dtype=float)
        scores = dict(one.rewards) | ({"human": np.array(one.group.grades)} if one.group.grades else {})
        for method, values in scores.items():
            if np.ptp(lengths) and np.ptp(values):
                found = (_correlation(rankdata(lengths), rankdata(values)), _correlation(lengths, values))
                columns.setdefault(method, []).append(found)
    return {
        method: LengthBias(
            spearman=float(np.mean([s for s, _ in found])),
            pearson=float(np.mean([p for _, p in found])),
            groups=len(found),
        )
        for method, found in columns.items()
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
