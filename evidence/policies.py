"""Policy optimization: a small policy is optimized against each method's reward, and gold is measured along the way.

    python -m evidence.policies testbed --method general --method dmoerm --beta 0 --beta 0.05 --noise noisy=0.25,0.15

`--set policy.layers=4` changes the policy, `--set rl.learning_rate=1e-4` the optimization, other names the reward
models. Run again, the same command resumes.

condition × seed → method suite → a policy per method and KL weight (`evidence.rl`) → gold at start, peak and end
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.stats import t

from dmoerm.config import Config, apply_override, changed, validated
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.comparison import Suite, open_suite
from dmoerm.evaluation.methods import choose_methods
from dmoerm.evaluation.results import Difference, Document, ResultModel, versions
from dmoerm.schema import Query, prompt_key
from dmoerm.training.steps import Progress
from evidence.best_of_n_estimates import CurveFit, fit_curve
from evidence.compare import command_line, conditions_of, options_parser, write_results
from evidence.conditions import Changes, condition_run, experiment_config, run_data
from evidence.methods import ensembles
from evidence.rl import Point, PolicyConfig, RLConfig, draw_prompts, make_policy, optimize

_METHODS = ("general", "ensemble_uwo", "dmoerm")


class PolicyRun(ResultModel):
    """One optimized policy."""

    condition: str
    method: str
    beta: float
    """Weight of the KL penalty."""
    seed: int
    points: tuple[Point, ...]


class PolicySummary(ResultModel):
    """A method under one condition and KL weight: means over seeds at the same steps."""

    condition: str
    method: str
    beta: float
    seeds: int
    start: float
    """Gold of the initial policy."""
    peak: float
    """Highest gold."""
    peak_step: int
    end: float
    """Gold at the end."""
    end_same_length: float
    """`gold_same_length` at the end."""
    kl: float
    """KL at the end."""
    fall: float
    """Gold at the peak minus gold at the end: the overoptimization."""
    fall_low: float | None = None
    fall_high: float | None = None
    """`fall_low` to `fall_high` is Student's 95 % interval of `fall` over the seeds, with three of them or more."""
    fit: CurveFit | None
    """The fit over all points of all seeds."""


class PolicyResults(Document):
    """rl.json of `python -m evidence.policies`."""

    kind: Literal["rl"] = "rl"
    command: str
    config: dict[str, Any]
    """The reward models' settings."""
    policy: dict[str, Any]
    """The policy's settings."""
    settings: dict[str, Any]
    """The optimization's settings."""
    parameters: int
    """Parameters of the policy, including embeddings."""
    versions: dict[str, str]
    runs: tuple[PolicyRun, ...]
    summaries: tuple[PolicySummary, ...]
    paired: dict[str, dict[str, Difference]]
    """Condition → `dmoerm - method (beta)` → difference of gold at the end; see `policies.differences`."""


class PolicySettings(NamedTuple):
    """Settings of the reward models, the policy and its optimization."""

    config: Config
    policy: PolicyConfig
    rl: RLConfig


def optimize_policies(
    settings: PolicySettings,
    conditions: Mapping[str, Changes],
    seeds: Sequence[int],
    methods: Sequence[str],
    betas: Sequence[float] = (),
    drawn_prompts: int = 160,
    prompts: int = 96,
    command: str = "policies",
) -> PolicyResults:
    """Train the reward models and optimize a policy against each; finished ones under `config.output` are read.

    Args:
        methods: names of methods; only these and the run are trained.
        betas: weights of the KL penalty; empty: the one of `settings.rl`.
        drawn_prompts: testbed prompts per task to optimize on.
        prompts: testbed prompts per task that the reward models are trained and tested on.
    """
    progress, chosen = Progress(), choose_methods(methods)
    # Neither the policy was fine-tuned on these prompts nor the reward models of any seed.
    train = [group for seed in seeds for group in run_data(changed(settings.config, {"seed": seed}), prompts).train]
    known = {prompt_key(group.prompt) for group in train}
    drawn = draw_prompts(drawn_prompts, settings.policy.seed, skip=settings.policy.prompts_per_task)
    drawn = [prompt for prompt in drawn if prompt_key(prompt.prompt) not in known]
    weights = [validated(RLConfig, {**settings.rl.model_dump(), "beta": beta}, "--beta") for beta in betas]
    weights = weights or [settings.rl]
    runs: list[PolicyRun] = []
    parameters = 0
    with progress.run(1 + len(conditions) * len(seeds) * len(methods) * len(weights)):
        with progress.step("policy"):
            start = make_policy(settings.policy, Path(settings.config.output) / "policies")
        for (condition, changes), seed in itertools.product(conditions.items(), seeds):
            config = condition_run(settings.config, condition, changes, seed, prompts)
            suite = open_suite(config, chosen, progress.console)
            if missing := [name for name in methods if name not in suite.scorers]:
                raise ConfigError(f"{missing[0]}: does not exist for this run or is a run of its own; leave it out")
            for method, weight in itertools.product(methods, weights):
                rl = weight.model_copy(update={"seed": seed})
                trajectory = optimize(
                    start,
                    functools.partial(_rewards, suite, method),
                    drawn,
                    rl,
                    Path(config.output).with_name("rl") / f"{method}-{rl.algorithm}-beta{rl.beta:g}",
                    method=f"{condition}/{method}",
                    depends_on=f"{ensembles.SIZE} members, {config!r}",
                    progress=progress,
                )
                points = trajectory.points
                runs.append(PolicyRun(condition=condition, method=method, beta=rl.beta, seed=seed, points=points))
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


def _rewards(suite: Suite, method: str, queries: Sequence[Query]) -> list[list[float]]:
    return [group.rewards[method].tolist() for group in suite.score(queries, keep=False)]


def summarize(runs: Sequence[PolicyRun]) -> list[PolicySummary]:
    """Average the seeds of each condition, method and KL weight, in the order of the runs."""
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
        end_same_length=fmean(run.points[-1].gold_same_length for run in runs),
        kl=fmean(run.points[-1].kl for run in runs),
        fall=float(gold[peak] - gold[-1]),
        fall_low=fall_low,
        fall_high=fall_high,
        fit=_fit(runs),
    )


def _student(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return Student's 95 % interval of the mean; None with fewer than three values."""
    if len(values) < 3:
        return None, None
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return float(fmean(values) - half), float(fmean(values) + half)


def _fit(runs: Sequence[PolicyRun]) -> CurveFit | None:
    d = [float(np.sqrt(max(point.kl, 0.0))) for run in runs for point in run.points]
    gains = [point.gold - run.points[0].gold for run in runs for point in run.points]
    return fit_curve("rl", d, gains) if sum(value > 0 for value in d) >= 3 else None


def differences(runs: Sequence[PolicyRun]) -> dict[str, dict[str, Difference]]:
    """Return condition → `dmoerm - method` (and KL weight) → difference of final gold, taken seed by seed.

    Its interval is Student's 95 % over the seeds; with fewer than three, `low` and `high` are the mean.
    """
    ends = {(r.condition, r.method, r.beta, r.seed): r.points[-1].gold for r in runs}
    rows: dict[str, dict[str, list[float]]] = {}
    for (condition, method, beta, seed), end in ends.items():
        if method != "dmoerm" and (ours := ends.get((condition, "dmoerm", beta, seed))) is not None:
            rows.setdefault(condition, {}).setdefault(f"dmoerm - {method} ({beta:g})", []).append(ours - end)
    found: dict[str, dict[str, Difference]] = {}
    for condition, named in rows.items():
        for name, values in named.items():
            mean, (low, high) = fmean(values), _student(values)
            difference = Difference(value=mean, low=mean if low is None else low, high=mean if high is None else high)
            found.setdefault(condition, {})[name] = difference
    return found


def options_of_policies() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options_parser(__doc__)
    parser.add_argument("--beta", type=float, action="append", default=[], help="weight of the KL penalty")
    parser.add_argument("--algorithm", choices=("rloo", "grpo", "ppo"), help="default: rloo")
    parser.add_argument("--steps", type=int, help="batches of samples; default: 150")
    parser.add_argument("--rl-prompts", type=int, default=160, help="testbed prompts per task to optimize on")
    return parser


def settings_of(options: argparse.Namespace) -> PolicySettings:
    """Split `--set`: `policy.…` and `rl.…` are the policy and its optimization, other names the reward models."""
    given: dict[str, Any] = {"policy": {}, "rl": {}}
    for override in options.set:
        if override.startswith(("policy.", "rl.")):
            apply_override(given, override)
    others = [override for override in options.set if not override.startswith(("policy.", "rl."))]
    given["rl"] |= {n: v for n in ("algorithm", "steps") if (v := getattr(options, n)) is not None}
    return PolicySettings(
        experiment_config(options.config, others, options.output),
        validated(PolicyConfig, given["policy"], "--set policy"),
        validated(RLConfig, given["rl"], "--set rl"),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Optimize policies."""
    options = options_of_policies().parse_args(arguments)
    ensembles.SIZE = options.members
    settings = settings_of(options)
    results = optimize_policies(
        settings,
        conditions_of(options.noise or ["noisy=0.25,0.15"], options.condition),
        options.seed or (0, 1),
        options.method or _METHODS,
        options.beta,
        options.rl_prompts,
        options.prompts,
        command_line("policies", arguments),
    )
    path = Path(settings.config.output) / "rl.json"
    write_results(results, path)


if __name__ == "__main__":
    main()
