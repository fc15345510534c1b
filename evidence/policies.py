"""Policies that are optimized against each method, for `dmoerm rl`.

condition × seed → method suite → a policy per method and KL weight (`evidence.rl`) → gold at start, peak and end
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from scipy.stats import t

from dmoerm.config import Config, changed, validated
from dmoerm.data.splits import load_splits
from dmoerm.errors import DataError
from dmoerm.evaluation.results import Difference, versions
from dmoerm.experiments.method_suite import MethodSuite, Settings, SuiteScorer, open_suite
from dmoerm.experiments.methods import choose_methods
from dmoerm.schema import prompt_key
from dmoerm.training.progress import Progress
from evidence.best_of_n_estimates import fit_curve
from evidence.conditions import condition_run
from evidence.documents import CurveFit, PolicyResults, PolicyRun, PolicySummary
from evidence.rl import PolicyConfig, RLConfig, RLPrompt, Trajectory, draw_prompts, gold_of, make_policy, optimize


@dataclass(frozen=True)
class PolicySettings:
    """Settings of the reward models, the policy and its optimization."""

    config: Config
    policy: PolicyConfig
    rl: RLConfig


def optimize_policies(
    settings: PolicySettings,
    conditions: Mapping[str, Settings],
    seeds: Sequence[int],
    methods: Sequence[str],
    betas: Sequence[float] = (),
    prompts: int = 160,
    members: int = 5,
    command: str = "rl",
) -> PolicyResults:
    """Train the reward models and optimize a policy against each; finished ones under `config.output` are read.

    Args:
        conditions: as in `compare_methods`.
        methods: names of methods; only these and the run are trained.
        betas: weights of the KL penalty; empty: the one of `settings.rl`.
        prompts: testbed prompts per task to draw from.
        members: models in an ensemble.

    Raises:
        ConfigError: a method is unknown or cannot be trained on this run, or TRL is missing.
    """
    progress, chosen = Progress(), choose_methods(methods)
    drawn = _prompts(settings, seeds, prompts)
    weights = [validated(RLConfig, {**settings.rl.model_dump(), "beta": beta}, "--beta") for beta in betas]
    weights = weights or [settings.rl]
    runs: list[PolicyRun] = []
    parameters = 0
    with progress.run(1 + len(conditions) * len(seeds) * len(methods) * len(weights)):
        with progress.step("policy"):
            start = make_policy(settings.policy, Path(settings.config.output) / "policies")
        for (condition, changes), seed in itertools.product(conditions.items(), seeds):
            run = condition_run(settings.config, condition, changes, seed)
            suite = open_suite(run, members, progress.console, methods=chosen)
            suite.check_in_pass(methods)
            for method, weight in itertools.product(methods, weights):
                rl = weight.model_copy(update={"seed": seed})
                trajectory = _optimize(start, suite, condition, method, drawn, rl, progress)
                runs.append(_policy_run(condition, method, trajectory))
                parameters = trajectory.parameters
    return PolicyResults(
        command=command,
        config=settings.config.model_dump(mode="json"),
        policy=settings.policy.model_dump(mode="json"),
        settings=settings.rl.model_dump(mode="json"),
        parameters=parameters,
        versions=versions(),
        runs=tuple(runs),
        summaries=tuple(summarize(runs)),
        paired=differences(runs),
    )


def _optimize(
    start: Path,
    suite: MethodSuite,
    condition: str,
    method: str,
    prompts: Sequence[RLPrompt],
    rl: RLConfig,
    progress: Progress,
) -> Trajectory:
    """Optimize a policy from `start` against one method of a suite, in the folder beside the run's."""
    config = suite.run.config
    return optimize(
        start,
        SuiteScorer(suite, method).score_all,
        gold_of,
        prompts,
        rl,
        Path(config.output).with_name("rl") / f"{method}-{rl.algorithm}-beta{rl.beta:g}",
        method=f"{condition}/{method}",
        depends_on=f"{suite.context.members} members, {config!r}",
        progress=progress,
    )


def _prompts(settings: PolicySettings, seeds: Sequence[int], count: int) -> list[RLPrompt]:
    """Draw prompts that neither the policy was fine-tuned on nor the reward models of any seed."""
    parts = [load_splits(changed(settings.config, {"seed": seed})).train for seed in seeds]
    known = {prompt_key(group.prompt) for part in parts for group in part}
    drawn = draw_prompts(count, settings.policy.seed, skip=settings.policy.prompts_per_task)
    return [prompt for prompt in drawn if prompt_key(prompt.prompt) not in known]


def _policy_run(condition: str, method: str, trajectory: Trajectory) -> PolicyRun:
    points = [
        {
            **point.model_dump(),
            "proxy": trajectory.scale.normalize(point.proxy),
            "gold_same_length": trajectory.gold_same_length(point),
        }
        for point in trajectory.points
    ]
    fields = {"condition": condition, "method": method, "beta": trajectory.beta, "seed": trajectory.seed}
    return PolicyRun.model_validate({**fields, "points": points})


def summarize(runs: Sequence[PolicyRun]) -> list[PolicySummary]:
    """Average the seeds of each condition, method and KL weight, in the order of the runs.

    Raises:
        DataError: the seeds of a method were measured at different steps.
    """
    together: dict[tuple[str, str, float], list[PolicyRun]] = {}
    for run in runs:
        together.setdefault((run.condition, run.method, run.beta), []).append(run)
    return [_summary(same) for same in together.values()]


def _summary(runs: Sequence[PolicyRun]) -> PolicySummary:
    first, steps = runs[0], [point.step for point in runs[0].points]
    if any([point.step for point in run.points] != steps for run in runs):
        raise DataError(f"the seeds of {first.method} were measured at different steps", field="points")
    gold = np.mean([[point.gold for point in run.points] for run in runs], axis=0)
    peak = int(gold.argmax())
    fall_low, fall_high = _student([run.points[peak].gold - run.points[-1].gold for run in runs])
    return PolicySummary(
        condition=first.condition,
        method=first.method,
        beta=first.beta,
        seeds=len(runs),
        start=float(gold[0]),
        peak=float(gold[peak]),
        peak_step=steps[peak],
        end=float(gold[-1]),
        end_same_length=_mean([run.points[-1].gold_same_length for run in runs]),
        kl=fmean(run.points[-1].kl for run in runs),
        fall=float(gold[peak] - gold[-1]),
        fall_low=fall_low,
        fall_high=fall_high,
        fit=_fit(runs),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _student(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return Student's 95 % interval of the mean; None with fewer than three values."""
    if len(values) < 3:
        return None, None
    if not (error := stdev(values) / len(values) ** 0.5):
        return fmean(values), fmean(values)  # scipy has no interval of width 0
    low, high = t.interval(0.95, len(values) - 1, loc=fmean(values), scale=error)
    return float(low), float(high)


def _fit(runs: Sequence[PolicyRun]) -> CurveFit | None:
    d = [float(np.sqrt(max(point.kl, 0.0))) for run in runs for point in run.points]
    gains = [point.gold - run.points[0].gold for run in runs for point in run.points]
    if sum(value > 0 for value in d) < 3:
        return None
    curve = fit_curve("rl", d, gains)
    return CurveFit(alpha=curve.alpha, beta=curve.beta, peak=curve.peak, value=curve.value)


def differences(runs: Sequence[PolicyRun]) -> dict[str, dict[str, Difference]]:
    """Return condition → `dmoerm - method` (and KL weight) → difference of final gold, taken seed by seed.

    Its interval is Student's 95 % over the seeds; with fewer than three, `low` and `high` are the mean.
    """
    ends = {(r.condition, r.method, r.beta, r.seed): r.points[-1].gold for r in runs}
    by_condition: dict[str, dict[str, list[float]]] = {}
    for (condition, method, beta, seed), end in ends.items():
        if method != "dmoerm" and (ours := ends.get((condition, "dmoerm", beta, seed))) is not None:
            by_condition.setdefault(condition, {}).setdefault(f"dmoerm - {method} ({beta:g})", []).append(ours - end)
    return {
        condition: {name: _difference(values) for name, values in rows.items()}
        for condition, rows in by_condition.items()
    }


def _difference(values: Sequence[float]) -> Difference:
    mean, (low, high) = fmean(values), _student(values)
    return Difference(value=mean, low=mean if low is None else low, high=mean if high is None else high)
