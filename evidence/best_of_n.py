"""The gold reward of the best of n samples by each method's reward, for `dmoerm bon`.

condition × seed → method suite → rewards of all samples → curves over n: means over seeds, intervals over prompts

Shapes: N samples of a prompt, M values of n.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dmoerm.bootstrap import mean_interval
from dmoerm.config import Config
from dmoerm.errors import DataError
from dmoerm.evaluation.results import Difference, Overlap, versions
from dmoerm.experiments.method_suite import (
    MethodSuite,
    Scoring,
    Settings,
    empty_responses,
    open_suite,
    score_here,
)
from dmoerm.experiments.methods import choose_methods
from dmoerm.schema import prompt_key
from dmoerm.training.run import Engine
from evidence.best_of_n_estimates import BestOfN, best_of_n, best_of_n_kl, summarize_prompts
from evidence.conditions import condition_run
from evidence.documents import BestOfNCondition, BestOfNResults, CurveFit, MethodCurve
from evidence.samples import Samples

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredSamples:
    """One prompt's samples under every method.

    Attributes:
        gold: (N,).
        rewards: method → (N,).
    """

    task: str
    gold: Array
    rewards: Mapping[str, Array]


def default_ns(samples: int) -> list[int]:
    """Return 1, 2, 4, … and the number of samples itself."""
    ns = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    return ns if ns[-1] == samples else [*ns, samples]


def measure_best_of_n(
    config: Config,
    samples: Mapping[int, Sequence[Samples]],
    conditions: Mapping[str, Settings],
    members: int = 5,
    source: str = "",
    overlap: Overlap | None = None,
    ns: Sequence[int] | None = None,
    command: str = "bon",
    console: Console | None = None,
    engine: Engine | None = None,
    scoring: Scoring = score_here,
    methods: Sequence[str] = (),
    ablations: Sequence[str] = (),
) -> BestOfNResults:
    """Train what is missing under `config.output`, score the samples by every method, and fit the curves.

    Args:
        samples: seed → its prompts' samples; the same ones for every seed, or the held-out groups of each seed.
        overlap: the prompts of `source` that were trained on.
        conditions, methods, ablations: as in `compare_methods`.
        ns: values of n, to which 1 is added; None: powers of two up to the fewest samples of a prompt.
        engine: where the runs' steps are executed; None: in this process.
        scoring: scores the samples, here or on a cluster; the results are the same.

    Raises:
        ConfigError: a method is unknown or has no rewards for single samples.
        DataError: an n above the number of a prompt's samples, or a reward that is not finite.
    """
    console = console or Console(stderr=True)
    fewest = min(len(sample.index) for rows in samples.values() for sample in rows)
    ns, chosen = _checked_ns(ns, fewest), choose_methods(methods, ablations)
    measured = {}
    for name, settings in conditions.items():
        rows: dict[str, dict[int, list[ScoredSamples]]] = {}
        for seed, seed_samples in samples.items():
            console.print(f"{name}, seed {seed}", style="bold", highlight=False, markup=False)
            suite = open_suite(condition_run(config, name, settings, seed), members, console, engine, chosen)
            suite.check_in_pass([*methods, *ablations])
            for sample, scored in zip(seed_samples, score_samples(suite, seed_samples, console, scoring), strict=True):
                rows.setdefault(_prompt(sample), {}).setdefault(seed, []).append(scored)
        measured[name] = _condition([list(by_seed.values()) for by_seed in rows.values()], ns)
    prompts = {_prompt(sample): sample.query.task or "" for row in samples.values() for sample in row}
    return BestOfNResults(
        command=command,
        config=config.model_dump(mode="json"),
        seeds=tuple(samples),
        versions=versions(),
        source=source,
        ns=ns,
        kl=tuple(best_of_n_kl(ns).tolist()),
        prompts=dict(Counter(prompts.values())),
        samples=fewest,
        conditions=measured,
        overlap=overlap,
    )


def _checked_ns(ns: Sequence[int] | None, fewest: int) -> tuple[int, ...]:
    checked = tuple(sorted({1, *ns}) if ns else default_ns(fewest))
    if checked[-1] > fewest or checked[0] < 1:
        value = checked[-1] if checked[-1] > fewest else checked[0]
        raise DataError(f"cannot be estimated from {fewest} samples", field="n", value=value, hint=f"use 1 to {fewest}")
    return checked


def score_samples(
    suite: MethodSuite, samples: Sequence[Samples], console: Console, scoring: Scoring = score_here
) -> list[ScoredSamples]:
    """Score each prompt's samples by every method of the suite.

    A prompt's samples are scored in chunks; members are combined once all of them are scored.
    """
    chunks = [prompt.chunks() for prompt in samples]
    scored = iter(scoring(suite, [chunk for row in chunks for chunk in row], console))
    results: list[ScoredSamples] = []
    for prompt, row in zip(samples, chunks, strict=True):
        parts = [next(scored) for _ in row]
        members = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        rewards = suite.combine(members, empty_responses(prompt.query.responses))
        by_sample = {method: values[prompt.index] for method, values in rewards.items()}
        results.append(ScoredSamples(prompt.query.task or "", prompt.gold[prompt.index], by_sample))
    return results


def _prompt(samples: Samples) -> str:
    """Return the key of a prompt and its task; equal prompts of one task have the same key."""
    return f"{samples.query.task}\0{prompt_key(samples.query.prompt)}"


def _condition(rows: Sequence[Sequence[Sequence[ScoredSamples]]], ns: Sequence[int]) -> BestOfNCondition:
    """Compute the curves of all methods from each prompt's groups under every seed's models."""
    tasks = list(dict.fromkeys(seeds[0][0].task for seeds in rows))
    sets = {task: [seeds for seeds in rows if seeds[0][0].task == task] for task in tasks}
    if len(tasks) > 1:
        sets["all"] = list(rows)
    methods = list(rows[0][0][0].rewards)
    curves: dict[str, dict[str, MethodCurve]] = {}
    ends: dict[str, dict[str, Difference]] = {}
    for name, prompts in sets.items():
        results = {method: _curve(prompts, method, ns) for method in methods}
        curves[name] = {method: _summary(result) for method, result in results.items()}
        ends[name] = {
            f"dmoerm - {method}": _difference(results["dmoerm"].gold_by_prompt[:, -1] - result.gold_by_prompt[:, -1])
            for method, result in results.items()
            if method != "dmoerm"
        }
    return BestOfNCondition(curves=curves, at_the_end=ends)


def _curve(prompts: Sequence[Sequence[Sequence[ScoredSamples]]], method: str, ns: Sequence[int]) -> BestOfN:
    """Compute a method's curve; a prompt's row is the mean over its groups, then over the seeds' models."""
    rows = np.array([np.mean([_rows(groups, method, ns) for groups in seeds], axis=0) for seeds in prompts])
    return summarize_prompts(rows[:, 0], rows[:, 1], ns)


def _rows(groups: Sequence[ScoredSamples], method: str, ns: Sequence[int]) -> Array:
    """Return proxy and gold of the best of each n, (2, M), the mean over the groups.

    The proxy is in standard deviations of a group's samples.
    """
    rows = []
    for group in groups:
        rewards = group.rewards[method]
        proxy = (rewards - rewards.mean()) / max(rewards.std(), 1e-9)
        rows.append([best_of_n(proxy, proxy, ns), best_of_n(proxy, group.gold, ns)])
    return np.mean(rows, axis=0)


def _difference(by_prompt: Array) -> Difference:
    low, high = mean_interval(by_prompt[:, None])[0]
    return Difference(value=float(by_prompt.mean()), low=float(low), high=float(high))


def _summary(result: BestOfN) -> MethodCurve:
    curve = result.curve
    low, high = (curve.peak_interval or (None, None)) if curve else (None, None)
    fit = curve and CurveFit(
        alpha=curve.alpha, beta=curve.beta, peak=curve.peak, peak_low=low, peak_high=high, value=curve.value
    )
    return MethodCurve(
        proxy=tuple(result.proxy.tolist()),
        gold=tuple(result.gold.tolist()),
        low=tuple(result.gold_interval[:, 0].tolist()),
        high=tuple(result.gold_interval[:, 1].tolist()),
        fit=fit or None,
        falls_after=result.falls_after,
    )
