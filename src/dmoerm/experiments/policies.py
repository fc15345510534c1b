"""Policies that were optimised against each method: what `dmoerm rl` reports.

trajectories (`dmoerm.rl`) → each method's gold reward at the start, at its highest and at the end; fits over √KL
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from ..errors import DataError
from ..evaluation.best_of_n import fit_curve
from ..evaluation.experiment_results import Fit, PolicyRun, PolicySummary
from ..evaluation.results import Difference


def summarise(runs: Sequence[PolicyRun]) -> list[PolicySummary]:
    """Each condition, method and KL weight, in the order in which they come.

    Raises:
        DataError: seeds of one of them were measured at different steps.
    """
    together: dict[tuple[str, str, float], list[PolicyRun]] = {}
    for run in runs:
        together.setdefault((run.condition, run.method, run.beta), []).append(run)
    return [_summary(found) for found in together.values()]


def _summary(runs: Sequence[PolicyRun]) -> PolicySummary:
    first, steps = runs[0], [point.step for point in runs[0].points]
    if any([point.step for point in run.points] != steps for run in runs):
        raise DataError(f"the seeds of {first.method} were measured at different steps", field="points")
    gold = np.mean([[point.gold for point in run.points] for run in runs], axis=0)
    peak = int(gold.argmax())
    return PolicySummary(
        condition=first.condition,
        method=first.method,
        beta=first.beta,
        seeds=len(runs),
        start=float(gold[0]),
        peak=float(gold[peak]),
        peak_step=steps[peak],
        end=float(gold[-1]),
        kl=fmean(run.points[-1].kl for run in runs),
        fall=float(gold[peak] - gold[-1]),
        fit=_fit(runs),
    )


def _fit(runs: Sequence[PolicyRun]) -> Fit | None:
    d = [float(np.sqrt(max(point.kl, 0.0))) for run in runs for point in run.points]
    gains = [point.gold - run.points[0].gold for run in runs for point in run.points]
    if sum(value > 0 for value in d) < 3:
        return None
    found = fit_curve("rl", d, gains)
    return Fit(alpha=found.alpha, beta=found.beta, peak=found.peak, value=found.value)


def differences(runs: Sequence[PolicyRun]) -> dict[str, dict[str, Difference]]:
    """Condition → `dmoerm - method` (and KL weight) → difference of gold at the end, by seed: mean and range."""
    ends = {(r.condition, r.method, r.beta, r.seed): r.points[-1].gold for r in runs}
    found: dict[str, dict[str, list[float]]] = {}
    for (condition, method, beta, seed), end in ends.items():
        if method != "dmoerm" and (ours := ends.get((condition, "dmoerm", beta, seed))) is not None:
            found.setdefault(condition, {}).setdefault(f"dmoerm - {method} ({beta:g})", []).append(ours - end)
    return {
        condition: {
            name: Difference(value=fmean(values), low=min(values), high=max(values)) for name, values in rows.items()
        }
        for condition, rows in found.items()
    }
