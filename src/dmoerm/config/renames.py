"""Settings under the names that they had before: run configs and model folders that were saved with them still load."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

RENAMED = {
    "best_by": "metric_for_best_model",
    "experts_a_step": "experts_per_step",
    "too_long": "truncation",
    "people_grades": "human_labels",
    "most_capabilities": "max_capabilities",
}
NOW = {**RENAMED, "first_fraction": "phase1.phase1_fraction"}
"""Old name → what an error says instead."""
_VALUES = {("best_by", "consistency"): "accuracy"}
# Settings that some steps had without effect, with the value that asks for none: only that one is passed over.
_REMOVED = {"l2": 0, "head_learning_rate": None}


def current_names(settings: Mapping[str, Any], fields: Container[str]) -> dict[str, Any]:
    """The settings of one group under today's names.

    Args:
        settings: as they are written, in a file, on the command line or in a model's `config.json`.
        fields: the names that the group has today; an old name that is not among them stays, and is refused.
    """
    found = dict(settings)
    for old, new in RENAMED.items():
        if old in found and new in fields and new not in found:
            value = found.pop(old)
            found[new] = _VALUES.get((old, value), value) if isinstance(value, str) else value
    for name, neutral in _REMOVED.items():
        if name not in fields and name in found and found[name] == neutral:
            del found[name]
    return _moved(found) if "phase1" in fields else found


def _moved(settings: dict[str, Any]) -> dict[str, Any]:
    """The share of phase 1's groups was a setting of phase 3."""
    phase1, phase3 = settings.get("phase1") or {}, settings.get("phase3")
    if not isinstance(phase3, dict) or "first_fraction" not in phase3 or "phase1_fraction" in phase1:
        return settings
    rest = {name: value for name, value in phase3.items() if name != "first_fraction"}
    return {**settings, "phase1": {**phase1, "phase1_fraction": phase3["first_fraction"]}, "phase3": rest}
