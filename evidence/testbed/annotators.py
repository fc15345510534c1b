"""Simulated Bradley–Terry annotators: one independent draw for each response and annotator.

A grade is gold + temperature × Gumbel noise, so P(a above b) = σ((gold_a − gold_b) / temperature) exactly, and the
grades of an annotator within a group have no cycles.
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
"""Task → temperature of the overall grades, from `calibrate` on 200 groups of 4 responses for an agreement of 0.68."""

CAPABILITY_TEMPERATURE = 0.12
"""Temperature of capability grades. Gold grades differ more than gold rewards, so agreement is higher."""

STEP = 0.25
"""Distance of two points on the five-point scale of capability grades, 0 to 1."""

_EULER_GAMMA = 0.5772156649015329


def overall_grade(gold: float, task: str, rng: Random) -> float:
    """Draw an overall grade: gold plus noise of mean 0, rounded so that it is the same on every machine."""
    return round(gold + TEMPERATURES[task] * _gumbel(rng), 4)


def capability_grade(gold: float, rng: Random) -> float:
    """Draw a capability grade on the five-point scale; equal gold grades mostly give equal grades, as with people."""
    noisy = gold + CAPABILITY_TEMPERATURE * _gumbel(rng)
    return min(1.0, max(0.0, round(noisy / STEP) * STEP))


def agreement(differences: Sequence[float], temperature: float) -> float:
    """Return the expected share of pairs that two annotators order the same way, given their gold differences."""
    shares = [1 / (1 + math.exp(-min(abs(d) / temperature, 700.0))) for d in differences]
    return sum(share**2 + (1 - share) ** 2 for share in shares) / len(shares)


def calibrate(differences: Sequence[float], target: float = 0.68) -> float:
    """Find by bisection the temperature at which two annotators agree on the share `target` (0.5 to 1) of the pairs."""
    low, high = 1e-4, 10.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if agreement(differences, middle) > target else (low, middle)
    return math.sqrt(low * high)


def _gumbel(rng: Random) -> float:
    uniform = max(rng.random(), 1e-12)
    return -math.log(-math.log(uniform)) - _EULER_GAMMA
