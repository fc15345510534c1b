"""The gold reward: capability grades from a table of weights, combined by a formula of the task.

The table has the weight of each family of sentences for each task and capability. A positive contribution saturates and
then falls with the number of sentences; a negative one saturates. A family that helps one task hurts another with about
the same weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from dmoerm.errors import DataError
from dmoerm.schema import Prompt
from evidence.testbed.evidence import correctness, evidence, workmanship

Weights = dict[str, float]

BASE = "base"
"""The key of the grade of an answer without any evidence."""

WEIGHTS: dict[str, dict[str, Weights]] = {
    "roleplay": {
        "character_setting": {BASE: 0.2, "persona": 0.75, "imagery": 0.15, "disclaimer": -0.6, "fact": -0.3},
        "conversational_sense": {BASE: 0.4, "question": 0.55, "order": -0.4, "reason": -0.4, "viewpoint": -0.2},
        "empathy": {BASE: 0.1, "warmth": 0.8, "feeling": 0.1, "fact": -0.2},
        "relationship_traits": {BASE: 0.1, "bond": 0.8, "warmth": 0.15, "disclaimer": -0.3},
        "personalised_expression": {BASE: 0.15, "quirk": 0.8, "feeling": 0.15, "viewpoint": -0.3, "disclaimer": -0.3},
        "content_richness": {BASE: 0.05, "imagery": 0.65, "example": 0.35, "topic": 0.1},
    },
    "chitchat": {
        "conversational_sense": {BASE: 0.5, "topic": 0.45, "fact": -0.45, "order": -0.45, "imagery": -0.4},
        "proactivity": {BASE: 0.1, "question": 0.9, "order": -0.2},
        "emotion_expression": {BASE: 0.15, "feeling": 0.85, "reason": -0.35, "fact": -0.2},
        "empathy": {BASE: 0.15, "warmth": 0.85, "bond": 0.1, "viewpoint": -0.4, "reason": -0.2},
        "content_richness": {BASE: 0.1, "example": 0.7, "quirk": 0.2, "digression": 0.1},
    },
    "subjective_qa": {
        "convincingness": {BASE: 0.25, "reason": 0.75, "feeling": -0.45, "guess": -0.3, "warmth": -0.25},
        "logic": {BASE: 0.2, "order": 0.7, "reason": 0.15, "digression": -0.3, "imagery": -0.3},
        "viewpoint_richness": {BASE: 0.1, "viewpoint": 0.9, "persona": -0.2},
        "breadth_of_knowledge": {BASE: 0.1, "fact": 0.8, "example": 0.2, "persona": -0.2},
        "relevance": {BASE: 0.4, "topic": 0.6, "digression": -0.5, "warmth": -0.3, "question": -0.4, "bond": -0.2},
    },
    "objective_qa": {
        "objectivity": {
            BASE: 1.0,
            "feeling": -0.6,
            "warmth": -0.5,
            "viewpoint": -0.6,
            "imagery": -0.5,
            "bond": -0.3,
            "quirk": -0.3,
            "persona": -0.3,
        },
        "reasoning": {BASE: 0.15, "reason": 0.85, "viewpoint": -0.2},
        "logic": {BASE: 0.2, "order": 0.8, "digression": -0.25},
        "depth_of_knowledge": {BASE: 0.1, "fact": 0.9, "guess": -0.2},
        "relevance": {BASE: 0.4, "topic": 0.6, "digression": -0.5, "question": -0.4, "example": -0.35},
    },
    "text_creation": {
        "conformity_to_intent": {
            BASE: 0.55,
            "topic": 0.45,
            "question": -0.5,
            "warmth": -0.5,
            "disclaimer": -0.5,
            "guess": -0.3,
        },
        "expressiveness": {BASE: 0.1, "imagery": 0.85, "feeling": 0.15, "fact": -0.4, "reason": -0.2},
        "readability": {BASE: 1.0, "viewpoint": -0.5, "fact": -0.5, "digression": -0.4, "reason": -0.4},
        "content_richness": {BASE: 0.1, "example": 0.75, "imagery": 0.15},
        "logic": {BASE: 0.2, "order": 0.8, "digression": -0.2},
    },
}

LENGTHS: dict[str, tuple[int, int]] = {
    "roleplay": (25, 100),
    "chitchat": (10, 70),
    "subjective_qa": (40, 120),
    "objective_qa": (10, 70),
    "text_creation": (50, 140),
}
"""Task → minimum and maximum number of words without a penalty for the length."""

_HELP = (0.0, 0.55, 0.85, 1.0)
_HELP_LOST_PER_EXTRA = 0.2
_HARM = (0.0, 0.6, 0.9, 1.0)


def grade(task: str, prompt: Prompt, response: str) -> dict[str, float]:
    """Return capability → gold grade, 0 to 1, from the text alone. Raise `DataError` for an unknown task."""
    if task not in WEIGHTS:
        raise DataError(
            "is not a task of the testbed", field="task", value=task, hint=f"use one of {', '.join(WEIGHTS)}"
        )
    counts = evidence(prompt, response)
    grades = {name: _weigh(weights, counts) for name, weights in WEIGHTS[task].items()}
    if task == "objective_qa":
        grades = {"correctness": correctness(prompt, response, counts["guess"]), **grades}
    return grades


def gold_reward(task: str, prompt: Prompt, response: str) -> float:
    """Return the gold reward, 0 to 1: the task's combination of the grades times the quality of writing."""
    grades = grade(task, prompt, response)
    return _COMBINE[task](grades) * workmanship(response, *LENGTHS[task])


def _weigh(weights: Weights, counts: Mapping[str, int]) -> float:
    total = weights[BASE]
    for name, weight in weights.items():
        if name != BASE:
            few, extra = min(counts[name], 3), max(0, counts[name] - 3)
            help_ = max(0.0, _HELP[few] - _HELP_LOST_PER_EXTRA * extra)
            total += weight * (help_ if weight > 0 else _HARM[few])
    return min(1.0, max(0.0, total))


def _roleplay(g: Mapping[str, float]) -> float:
    """Character times personality; the weaker of conversation and empathy; richness."""
    heart = math.sqrt(g["character_setting"] * (g["personalised_expression"] + g["relationship_traits"]) / 2)
    return 0.45 * heart + 0.3 * min(g["conversational_sense"], g["empathy"]) + 0.25 * g["content_richness"]


def _chitchat(g: Mapping[str, float]) -> float:
    """The weaker of conversation and empathy; emotion within a conversation; the better of proactivity and richness."""
    return (
        0.45 * min(g["conversational_sense"], g["empathy"])
        + 0.3 * math.sqrt(g["emotion_expression"] * g["conversational_sense"])
        + 0.25 * max(g["proactivity"], g["content_richness"])
    )


def _subjective_qa(g: Mapping[str, float]) -> float:
    """Convincing arguments times relevance; viewpoints, limited by logic; knowledge."""
    return (
        0.4 * g["relevance"] * math.sqrt(g["convincingness"])
        + 0.35 * min(g["viewpoint_richness"], 0.2 + g["logic"])
        + 0.25 * g["breadth_of_knowledge"]
    )


def _objective_qa(g: Mapping[str, float]) -> float:
    """Correctness times objectivity; depth counts little if the answer is wrong or biased."""
    support = 0.4 * max(g["reasoning"], g["logic"]) + 0.35 * g["depth_of_knowledge"] + 0.25 * g["relevance"]
    sound = math.sqrt(g["correctness"] * g["objectivity"])
    return 0.3 * sound + 0.7 * support * (0.3 + 0.7 * sound)


def _text_creation(g: Mapping[str, float]) -> float:
    """Conformity times expressiveness; richness, limited by readability; logic."""
    return (
        0.5 * g["conformity_to_intent"] * math.sqrt(g["expressiveness"])
        + 0.35 * min(g["readability"], g["content_richness"])
        + 0.15 * g["logic"]
    )


_COMBINE: dict[str, Callable[[Mapping[str, float]], float]] = {
    "roleplay": _roleplay,
    "chitchat": _chitchat,
    "subjective_qa": _subjective_qa,
    "objective_qa": _objective_qa,
    "text_creation": _text_creation,
}
