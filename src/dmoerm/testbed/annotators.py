"""Simulated people: Bradley–Terry annotators, one independent draw for each response and each annotator.

Gold plus temperature × Gumbel noise makes P(a above b) = σ((gold_a − gold_b) / temperature) exactly, and one
annotator's grades of a whole group are consistent with one another (no cycles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

TEMPERATURES: dict[str, float] = {
    "roleplay": 0.105,
    "chitchat": 0.123,
    "subjective_qa": 0.145,
    "objective_qa": 0.15,
    "text_creation": 0.15,
}
"""Task → temperature of the overall grades; from `calibrate` on 200 groups of 4, for an agreement of 0.68."""

CAPABILITY_TEMPERATURE = 0.12
"""One capability is easier to judge than the whole: the same noise or less, on grades that lie much further apart."""

STEP = 0.25
"""Capabilities are graded on a scale of five points, 0 to 1."""

_EULER_GAMMA = 0.5772156649015329


def overall_grade(gold: float, task: str, rng: Random) -> float:
    """One annotator's overall grade: gold plus noise of mean 0, rounded so that it reads the same on every machine."""
    return round(gold + TEMPERATURES[task] * _gumbel(rng), 4)


def capability_grade(gold: float, rng: Random) -> float:
    """One annotator's grade on the five-point scale; equal gold mostly gives equal grades, as with people."""
    noisy = gold + CAPABILITY_TEMPERATURE * _gumbel(rng)
    return min(1.0, max(0.0, round(noisy / STEP) * STEP))


def agreement(differences: Sequence[float], temperature: float) -> float:
    """The expected share of pairs that two annotators order the same way, for these gold differences within groups."""
    shares = [1 / (1 + math.exp(-min(abs(d) / temperature, 700.0))) for d in differences]
    return sum(share**2 + (1 - share) ** 2 for share in shares) / len(shares)


def calibrate(differences: Sequence[float], target: float = 0.68) -> float:
    """The temperature at which two annotators agree on `target` of the pairs (0.5 < target < 1), by bisection."""
    low, high = 1e-4, 10.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if agreement(differences, middle) > target else (low, middle)
    return math.sqrt(low * high)


def _gumbel(rng: Random) -> float:
    uniform = max(rng.random(), 1e-12)
    return -math.log(-math.log(uniform)) - _EULER_GAMMA
