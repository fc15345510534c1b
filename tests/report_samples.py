"""A made-up comparison for the report's tests, with as many methods and tasks as a real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmoerm.evaluation.results import METHODS, Comparison

TASKS = ("chitchat", "objective_qa", "role_play", "summarisation", "text_creation")
CAPABILITIES = ("correctness", "empathy", "fluency", "helpfulness", "logic", "proactivity", "relevance")
NAMES = ("general", "per_task", "per_task_routed", "all_labels", "all_labels_routed", "dmoerm", "another one")
_VERSIONS = {"python": "3.11.2", "torch": "2.9.0", "dmoerm": "0.1.0"}
_CONFIG = {"name": "human", "data": {"files": ["a.jsonl", "b.jsonl"]}, "phase3": {"inputs": "scores"}}


def comparison(methods: Sequence[str] = NAMES, tasks: Sequence[str] = TASKS, **changes: Any) -> Comparison:
    """A comparison over three seeds."""
    drawn = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "command": "dmoerm compare human --seed 0 --seed 1 --seed 2 --output runs/human-compare",
        "config": _CONFIG,
        "seeds": (0, 1, 2),
        "versions": _VERSIONS,
        "methods": {m: METHODS.get(m, f"what {m} is") for m in methods},
        "derived_tasks": tasks[:1],
        "gold_tasks": tasks[-1:],
        **_measured(drawn, methods, tasks, 0.72),
    }
    return Comparison.model_validate(fields | changes)


def _measured(drawn: np.random.Generator, methods: Sequence[str], tasks: Sequence[str], level: float) -> dict[str, Any]:
    columns = [*tasks, "mean", "mean_human"]
    levels = {m: level + (0.03 if m == "dmoerm" else 0) + drawn.normal(0, 0.01) for m in methods}
    accuracy = {m: {c: _estimate(levels[m] + drawn.normal(0, 0.03), 0.02) for c in columns} for m in methods}
    return {
        "accuracy": accuracy,
        "paired": {
            f"dmoerm - {m}": {c: _difference(levels["dmoerm"] - levels[m] + drawn.normal(0, 0.005)) for c in columns}
            for m in methods
            if m != "dmoerm"
        },
        "by_seed": {str(seed): {m: levels[m] + drawn.normal(0, 0.01) for m in methods} for seed in range(3)},
        "capabilities": {
            task: {
                name: _estimate(drawn.uniform(0.5, 0.95), 0.03) | {"pairs": int(drawn.integers(99, 999))}
                for name in names
            }
            for task, names in zip(tasks, [CAPABILITIES[3:], *[CAPABILITIES[:5]] * len(tasks)], strict=False)
        },
        "router": {
            "accuracy": 0.962,
            "prompts": 1234,
            "fallback": 0.031,
            "confusion": {a: {b: int(200 if a == b else drawn.integers(0, 9)) for b in tasks} for a in tasks},
        },
        "calibration": {m: _calibration(drawn) for m in methods},
        "length_bias": {
            m: {"spearman": drawn.uniform(-0.1, 0.4), "pearson": drawn.uniform(-0.1, 0.4), "groups": 812}
            for m in (*methods, "human")
        },
    }


def _estimate(value: float, spread: float) -> dict[str, Any]:
    value = float(np.clip(value, 0.1, 0.9))
    return {"value": value, "low": value - spread, "high": value + spread, "pairs": 2471, "prompts": 613}


def _difference(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.011, "high": value + 0.012}


def _calibration(drawn: np.random.Generator) -> dict[str, Any]:
    edges, slope = np.linspace(0.5, 1, 11), drawn.uniform(0.6, 1.1)
    middles = (edges[1:] + edges[:-1]) / 2
    accuracies = 0.5 + (middles - 0.5) * slope
    bins = [
        {"low": low, "high": low + 0.05, "pairs": 900 - 80 * i, "confidence": middles[i], "accuracy": accuracies[i]}
        for i, low in enumerate(edges[:-1])
    ]
    bins[0] |= {"pairs": 0, "confidence": None, "accuracy": None}
    return {"ece": drawn.uniform(0.01, 0.09), "pairs": sum(b["pairs"] for b in bins), "bins": bins}
