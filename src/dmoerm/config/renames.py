"""Former names of settings, so that run configs and model folders saved with them still load."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

RENAMED = {
    "best_by": "metric_for_best_model",
    "experts_a_step": "experts_per_step",
    "too_long": "truncation",
    "people_grades": "human_labels",
}
NOW = {**RENAMED, "first_fraction": "phase1.phase1_fraction"}
"""Former name → current name, for error messages."""
_VALUES = {("best_by", "consistency"): "accuracy"}
# Removed settings that had no effect on some steps, with their neutral value: only that value is ignored.
_REMOVED = {"l2": 0, "head_learning_rate": None}


def current_names(settings: Mapping[str, Any], fields: Container[str]) -> dict[str, Any]:
    """Return the settings of one group under their current names.

    Args:
        settings: as written in a file, on the command line or in a model's `config.json`.
        fields: current names in the group. A former name whose current one is not among them stays and is refused.
    """
    current = dict(settings)
    for old, new in RENAMED.items():
        if old in current and new in fields and new not in current:
            value = current.pop(old)
            current[new] = _VALUES.get((old, value), value) if isinstance(value, str) else value
    for name, neutral in _REMOVED.items():
        if name not in fields and name in current and current[name] == neutral:
            del current[name]
    return _moved(current) if "phase1" in fields else current


def _moved(settings: dict[str, Any]) -> dict[str, Any]:
    """Move the share of phase 1's groups, a former setting of phase 3, to phase 1."""
    phase1, phase3 = settings.get("phase1") or {}, settings.get("phase3")
    if not isinstance(phase3, dict) or "first_fraction" not in phase3 or "phase1_fraction" in phase1:
        return settings
    rest = {name: value for name, value in phase3.items() if name != "first_fraction"}
    return {**settings, "phase1": {**phase1, "phase1_fraction": phase3["first_fraction"]}, "phase3": rest}
