"""Router accuracy, calibration of win probabilities, and correlation of rewards with length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import rankdata

from ..schema import prompt_key
from ..training.exact_router import calibration_error
from .results import Bin, CalibrationResult, LengthBias, RouterResult
from .scored_groups import ScoredGroup

BINS = 10


def router_result(scored: Sequence[ScoredGroup]) -> RouterResult:
    """Measure accuracy, calibration, fallback share and confusion of the router on the distinct prompts with tasks."""
    known = list({(prompt_key(s.group.prompt), s.group.task): s for s in scored if s.group.task}.values())
    confusion: dict[str, dict[str, int]] = {}
    for group in sorted(known, key=lambda s: (s.task, s.likeliest)):
        row = confusion.setdefault(group.task, {})
        row[group.likeliest] = row.get(group.likeliest, 0) + 1
    right = sum(row.get(task, 0) for task, row in confusion.items())
    confidence = torch.tensor([max(s.route.values()) for s in known])
    ece = calibration_error(confidence, torch.tensor([float(s.likeliest == s.task) for s in known]))
    return RouterResult(
        accuracy=right / len(known) if known else None,
        prompts=len(known),
        fallback=sum(s.chosen is None for s in known) / len(known) if known else None,
        ece=ece if known else None,
        confusion=confusion,
    )


def calibration_result(scored: Sequence[ScoredGroup], bins: int = BINS) -> CalibrationResult:
    """Measure the calibration of `dmoerm`'s win probability on the human-ordered pairs."""
    margins = [group.rewards["dmoerm"] / group.temperature for group in scored]
    return reliability([p for group, row in zip(scored, margins, strict=True) for p in probabilities(group, row)], bins)


def probabilities(scored: ScoredGroup, rewards: np.ndarray) -> list[float]:
    """Return σ(reward difference) of each human-ordered pair, the better response first."""
    margins = [rewards[pair.better] - rewards[pair.worse] for pair in scored.group.pairs()]
    return [float(1 / (1 + np.exp(-np.clip(margin, -60, 60)))) for margin in margins]


def reliability(winner: Sequence[float], bins: int = BINS) -> CalibrationResult:
    """Measure the calibration of the probabilities of the responses that people prefer.

    A pair's confidence is the probability of its likelier winner, 0.5 to 1; the bins divide that range evenly.
    """
    given = np.array(winner, dtype=float)
    confidence, right = np.maximum(given, 1 - given), np.where(given == 0.5, 0.5, given > 0.5)
    edges = np.linspace(0.5, 1, bins + 1)
    index = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    filled = tuple(_bin(edges[i], edges[i + 1], confidence[index == i], right[index == i]) for i in range(bins))
    return CalibrationResult(ece=_error(filled), pairs=len(given), bins=filled)


def pooled(results: Sequence[CalibrationResult]) -> CalibrationResult:
    """Pool several results over the same bins."""
    bins = tuple(_joined(together) for together in zip(*(result.bins for result in results), strict=True))
    return CalibrationResult(ece=_error(bins), pairs=sum(b.pairs for b in bins), bins=bins)


def _joined(bins: Sequence[Bin]) -> Bin:
    known = [b for b in bins if b.confidence is not None and b.accuracy is not None]
    pairs = sum(b.pairs for b in known)
    confidence, accuracy = (
        sum(b.pairs * (getattr(b, name) or 0.0) for b in known) / pairs if pairs else None
        for name in ("confidence", "accuracy")
    )
    return bins[0].model_copy(update={"pairs": pairs, "confidence": confidence, "accuracy": accuracy})


def _error(bins: Sequence[Bin]) -> float:
    gaps = [b.pairs * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None and b.confidence]
    return float(sum(gaps) / max(sum(b.pairs for b in bins), 1))


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
    """Compute method → mean correlation of its rewards with length; `human` is that of the grades by people.

    Compare a method with `human`, because longer answers may be better.
    """
    columns: dict[str, list[tuple[float, float]]] = {}
    for member in scored:
        lengths = np.array([len(text) for text in member.group.responses], dtype=float)
        scores = dict(member.rewards) | ({"human": np.array(member.group.grades)} if member.group.grades else {})
        for method, values in scores.items():
            if np.ptp(lengths) and np.ptp(values):
                correlations = (_correlation(rankdata(lengths), rankdata(values)), _correlation(lengths, values))
                columns.setdefault(method, []).append(correlations)
    return {
        method: LengthBias(
            spearman=float(np.mean([s for s, _ in correlations])),
            pearson=float(np.mean([p for _, p in correlations])),
            groups=len(correlations),
        )
        for method, correlations in columns.items()
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
