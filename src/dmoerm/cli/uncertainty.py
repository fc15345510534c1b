"""Which pairs a trained model is least sure of: a judge's verdict on them tells it most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..labeling.questions import ResponsePair
    from ..model import DMoERM
    from ..scores import Score


def least_sure_first(pairs: Sequence[ResponsePair], model: DMoERM) -> list[ResponsePair]:
    """The pairs by the mean over capabilities of p (1 − p), highest first, p = σ(difference of capability scores)."""
    groups = {id(pair.group): pair.group for pair in pairs}
    scores = dict(zip(groups, model.score_queries(list(groups.values())), strict=True))
    return sorted(pairs, key=lambda pair: -_doubt(*(scores[id(pair.group)][i] for i in (pair.first, pair.second))))


def _doubt(first: Score, second: Score) -> float:
    margins = [first.capabilities[name] - second.capabilities[name] for name in first.capabilities]
    chances = [1 / (1 + math.exp(-max(-50.0, min(50.0, m)))) for m in margins or [first.reward - second.reward]]
    return sum(p * (1 - p) for p in chances) / len(chances)
