"""The results file of a comparison of methods."""

from __future__ import annotations

from typing import Any, Literal

from .results import (
    CalibrationResult,
    Cost,
    Difference,
    Document,
    Estimate,
    LengthBias,
    Overlap,
    ResultModel,
    RouterResult,
)


class Condition(ResultModel):
    """The methods under one condition, such as a share of reversed training labels."""

    settings: dict[str, Any]
    """Settings, named `a.b`, that distinguish the runs of this condition."""
    accuracy: dict[str, dict[str, Estimate]]
    """Method → task (and `mean`) → share of the ordered pairs that it orders the same way, the mean over seeds."""
    paired: dict[str, dict[str, Difference]]
    """`dmoerm - method` → task → accuracy of dmoerm minus that of the method on the same pairs."""
    by_seed: dict[str, dict[str, float]]
    """Seed → method → mean accuracy over tasks."""
    capabilities: dict[str, dict[str, Estimate]]
    """Task → capability → accuracy of dmoerm's expert."""
    router: RouterResult
    calibration: dict[str, CalibrationResult]
    """Method → calibration of its win probabilities, at a temperature fitted on the validation prompts; `dmoerm`: the
    model's own."""
    length_bias: dict[str, LengthBias]
    """Method (and `human`) → correlation with length within a prompt."""


class Comparison(Document):
    """results.json of `dmoerm compare`."""

    kind: Literal["comparison"] = "comparison"
    command: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    members: int
    """Models in an ensemble."""
    budget: str
    """The data and training steps of each method, in words."""
    versions: dict[str, str]
    overlap: Overlap | None = None
    """Held-out prompts that an external method was trained on, in the run with most of them."""
    methods: dict[str, str]
    """Method → its description."""
    conditions: dict[str, Condition]
    costs: dict[str, Cost]
    """Method → its cost in the first run."""
    derived_tasks: tuple[str, ...]
    """Tasks whose overall scores were computed from capability grades, not given by people."""
    gold_tasks: tuple[str, ...]
    """Tasks of the testbed, which are compared with its gold reward."""
