"""Results of an invented run, for tests that write, read or show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmoerm.evaluation.results import Results, versions

ESTIMATE = {"value": 0.7, "low": 0.6, "high": 0.8, "pairs": 40, "prompts": 12}
DIFFERENCE = {"value": 0.03, "low": 0.01, "high": 0.05}
NAMES = ("chitchat", "objective_qa", "mean")


def example(**changes: Any) -> Results:
    """Return results of a run on two tasks."""
    fields: dict[str, Any] = {
        "command": "train",
        "config": {},
        "seed": 3,
        "versions": versions(),
        "derived_tasks": [],
        "overlap": {"known": True, "groups": 0, "prompts": 0, "included": False},
        "router": {
            "accuracy": 0.98,
            "prompts": 50,
            "fallback": 0.02,
            "confusion": {"chitchat": {"chitchat": 24, "objective_qa": 1}, "objective_qa": {"objective_qa": 25}},
        },
        "accuracy": {m: dict.fromkeys(NAMES, ESTIMATE) for m in ("general", "per_task", "dmoerm")},
        "paired": {f"dmoerm - {m}": dict.fromkeys(NAMES, DIFFERENCE) for m in ("general", "per_task")},
        "capabilities": {"chitchat": {"empathy": ESTIMATE, "logic": ESTIMATE}},
        "calibration": {
            "ece": 0.04,
            "pairs": 80,
            "bins": [
                {"low": 0.5, "high": 0.75, "pairs": 0, "confidence": None, "accuracy": None},
                {"low": 0.75, "high": 1.0, "pairs": 80, "confidence": 0.8, "accuracy": 0.84},
            ],
        },
        "errors": {"worst": [], "by_length": {}, "by_agreement": {}},
        "length_bias": {"dmoerm": {"spearman": 0.2, "pearson": 0.1, "groups": 20}},
        "time": {"router": 1.5},
        "steps": {"router": {"loss": float("nan"), "seconds": 1.5}},
        "peak_memory": 2**30,
    }
    return Results.model_validate(fields | changes)


def read_results(path: Path) -> Results:
    """Return the results in a file."""
    return Results.model_validate_json(path.read_text(encoding="utf-8"))
