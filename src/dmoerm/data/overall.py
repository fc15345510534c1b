"""Overall scores for groups with capability grades only."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from statistics import fmean, pstdev

from ..schema import Grades, Group

Scales = Mapping[tuple[str | None, str], tuple[float, float]]
"""(task, capability) → mean and standard deviation of its grades."""


def overall_from_capabilities(groups: Iterable[Group], scales_of: Iterable[Group] | None = None) -> list[Group]:
    """Return the groups in order; those without overall grades get scores computed from their capability grades.

    A response's score is the mean of its grades, each standardized (mean 0, standard deviation 1) over all grades of
    its task and capability. Missing grades are skipped; a capability whose grades are all equal counts as 0. These
    groups have `scores_derived` set. Report them separately: such a score favors methods that combine capabilities.
    Groups with scores or ranks, and groups with a response that has no grade at all, are returned unchanged.

    Args:
        scales_of: the groups that define mean and standard deviation, such as the training part; None: `groups`.
    """
    groups = list(groups)
    scales = scales_from(groups if scales_of is None else scales_of)
    return [with_overall(group, scales) for group in groups]


def scales_from(groups: Iterable[Group]) -> Scales:
    """Return the scales of the groups' grades."""
    graded: dict[tuple[str | None, str], array[float]] = {}
    for group in groups:
        for name, grades in group.capabilities.items():
            graded.setdefault((group.task, name), array("d")).extend(value for value in grades if value is not None)
    return {key: (fmean(values), pstdev(values)) for key, values in graded.items() if values}


def with_overall(group: Group, scales: Scales) -> Group:
    """Return the group with scores from its capability grades, if it needs and has them."""
    if group.grades is not None:
        return group
    columns = [
        _standardized(grades, *scales[group.task, name])
        for name, grades in group.capabilities.items()
        if (group.task, name) in scales
    ]
    rows = [[value for value in row if value is not None] for row in zip(*columns, strict=True)]
    if not rows or not all(rows):
        return group
    return group.model_copy(update={"scores": tuple(map(fmean, rows)), "scores_derived": True})


def _standardized(grades: Grades, mean: float, deviation: float) -> Grades:
    constant = math.isclose(deviation, 0.0, abs_tol=1e-12)
    return tuple(None if value is None else 0.0 if constant else (value - mean) / deviation for value in grades)
