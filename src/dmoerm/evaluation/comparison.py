"""Comparison of methods on the same held-out prompts: `dmoerm compare`.

    for each seed:  train the run and what the methods need besides → score the held-out groups by every method
    all seeds    →  accuracy with intervals over prompts and seeds, paired differences, calibration, length bias

Finished training steps are stored and not repeated, so a killed comparison resumes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from ..config import Config, changed
from ..data.splits import load_splits
from ..errors import ConfigError, DataError
from ..schema import GENERATED, Query
from ..training import train
from ..training.calibration import temperature
from ..training.router import assign_tasks
from ..training.run import split_examples
from .methods import Method, MethodContext, TrainedMethod, choose_methods
from .metrics import (
    PairCounts,
    capability_counts,
    compare,
    join,
    length_bias,
    overall_counts,
    pooled,
    probabilities,
    reliability,
    router_result,
)
from .results import MEAN, CalibrationResult, Comparison, LengthBias, RouterResult, score_weights, versions
from .scored_groups import BatchScorer, ScoredGroup, score_groups, with_empty_lowest

Q = TypeVar("Q", bound=Query)


@dataclass(frozen=True)
class Suite:
    """A run and the trained methods beside it, which score in one pass over the texts.

    Attributes:
        trained: method → the trained method; without the methods that do not exist for this run.
    """

    context: MethodContext
    methods: Mapping[str, Method]
    trained: Mapping[str, TrainedMethod]

    @property
    def scorers(self) -> dict[str, BatchScorer]:
        """The methods that score in the run's passes."""
        return {name: method.score for name, method in self.trained.items() if method.score is not None}

    def combine(self, members: Mapping[str, np.ndarray], empty: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """Combine the members' rewards (k, N) of the responses to one prompt to the methods' rewards (N,).

        Empty responses get less than all others and do not affect them.
        """
        rewards: dict[str, np.ndarray] = {}
        for name, rows in members.items():
            kept = np.setdiff1d(np.arange(rows.shape[1]), np.array(empty, dtype=int))
            row = np.zeros(rows.shape[1])
            if len(kept):
                row[kept] = self.methods[name].combine(rows[:, kept])
            rewards[name] = with_empty_lowest(row, empty)
        return rewards

    def score(self, queries: Sequence[Q], keep: bool = True) -> list[ScoredGroup[Q]]:
        """Score queries by every method of `scorers`; with `keep`, cache the activations for other runs."""
        run = self.context.run
        cache = run.cache if keep else None
        scored = score_groups(run.model, queries, None, self.context.console, cache, self.scorers)
        return [replace(s, rewards=self.combine(s.members, s.empty)) for s in scored]


def open_suite(config: Config, methods: Sequence[Method], console: Console) -> Suite:
    """Open a run and methods; train what is missing under the parent folder of `config.output`."""
    run, data = train(config, console), load_splits(config)
    training, validation = split_examples(run, data.train, data.validation_prompts)
    context = MethodContext(run, data, assign_tasks(run, training), assign_tasks(run, validation), console)
    trained = {method.name: context.once(method.train) for method in methods}
    if len(trained) < len(methods):
        raise ConfigError("two methods have the same name; give one of them another")
    known = {name: method for name, method in trained.items() if method is not None}
    return Suite(context, {method.name: method for method in methods}, known)


@dataclass(frozen=True)
class SeedResult:
    """What one seed measured."""

    overall: Mapping[str, PairCounts]  # task → counts of the held-out pairs by method
    capabilities: Mapping[str, Mapping[str, PairCounts]]  # task → capability → counts by its expert
    router: RouterResult
    calibration: Mapping[str, CalibrationResult]
    length_bias: Mapping[str, LengthBias]
    derived: Sequence[str]  # tasks whose overall scores were computed from capability grades
    gold: Sequence[str]  # tasks of generated groups, whose labels are gold
    weights: Mapping[str, Mapping[str, float]]  # task → score → weight in the reward


def seed_config(config: Config, seed: int) -> Config:
    """Return the settings of one seed's run, which has a folder of its own in the output."""
    return changed(config, {"seed": seed, "output": str(Path(config.output) / f"seed{seed}" / "dmoerm")})


def measure_seed(config: Config, methods: Sequence[Method], console: Console) -> SeedResult:
    """Train what is missing, and score the held-out groups by every method.

    Raises:
        DataError: no held-out pair is ordered.
    """
    if not any(group.pairs() for group in load_splits(config).test):
        raise DataError("the held-out part has no pair of responses that people ordered", field="scores")
    suite = open_suite(config, methods, console)
    scored = suite.score(suite.context.data.test)
    for name, trained in suite.trained.items():
        if trained.score_all is not None:
            rows = trained.score_all([s.group for s in scored])
            scored = [
                replace(s, rewards={**s.rewards, name: np.array(row, dtype=float)})
                for s, row in zip(scored, rows, strict=True)
            ]
    temperatures = _temperatures(suite)
    winners: dict[str, list[float]] = {method: [] for method in suite.scorers}
    for s in scored:
        for method, values in winners.items():
            t = s.temperature if method == "dmoerm" else temperatures.get((method, s.task), 1.0)
            values += probabilities(s, s.rewards[method] / t)
    return SeedResult(
        overall=overall_counts(scored),
        capabilities=capability_counts(scored),
        router=router_result(scored),
        calibration={method: reliability(values) for method, values in winners.items()},
        length_bias=length_bias(scored),
        derived=sorted({s.task for s in scored if s.group.scores_derived}),
        gold=sorted({s.task for s in scored if s.group.source == GENERATED}),
        weights=score_weights(suite.context.run.metrics(), suite.context.run.model.config.tasks),
    )


def _temperatures(suite: Suite) -> dict[tuple[str, str], float]:
    """Fit T per method and task: σ((reward_a − reward_b) / T) predicts the labels of the validation prompts.

    A task without validation prompts uses its training groups. The temperature of `dmoerm` is in the model.
    """
    temperatures: dict[tuple[str, str], float] = {}
    context = suite.context
    for task in context.data.taxonomy.tasks:
        parts = (
            [e for e in part if e.task == task and e.pairs.get(None)] for part in (context.validation, context.train)
        )
        examples = next((part for part in parts if part), [])
        scored = suite.score([e.group for e in examples])
        for method in set(suite.scorers) - {"dmoerm"} if examples else ():
            margins = [
                (s.rewards[method][pair.better] - s.rewards[method][pair.worse], 1 / len(e.pairs[None]))
                for s, e in zip(scored, examples, strict=True)
                for pair in e.pairs[None]
            ]
            differences, weights = np.array(margins).T
            unit = max(float(differences.std()), 1e-9)  # the fit's bracket is in this unit
            temperatures[method, task] = unit * temperature(differences / unit, weights)
    return temperatures


def compare_methods(
    config: Config,
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = (),
    command: str = "compare",
    console: Console | None = None,
) -> Comparison:
    """Train and measure methods under `config.output`.

    Args:
        methods: names of methods to measure besides `dmoerm`; empty: all registered ones.

    Raises:
        ConfigError: a method is unknown, or there is no seed.
        DataError: the data cannot be used.
    """
    console = console or Console(stderr=True)
    chosen, results = choose_methods(methods), []
    if not seeds:
        raise ConfigError("a comparison needs at least one seed")
    for seed in seeds:
        console.print(f"seed {seed}", style="bold", highlight=False)
        results.append(measure_seed(seed_config(config, seed), chosen, console))
    fields = {
        "command": command,
        "date": date.today().isoformat(),
        "folder": config.output,
        "data": config.data.test_files or config.data.files,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "methods": descriptions(chosen, results),
    }
    return Comparison.model_validate({**fields, **summarize(seeds, results)})


def descriptions(methods: Sequence[Method], results: Sequence[SeedResult]) -> dict[str, str]:
    """Return method → description of the methods that were measured."""
    measured = {name for result in results for counts in result.overall.values() for name in counts.right}
    return {method.name: method.description for method in methods if method.name in measured}


# --- all seeds -----------------------------------------------------------------------------------------------------


def summarize(seeds: Sequence[int], results: Sequence[SeedResult]) -> dict[str, Any]:
    """Return the fields of a `Comparison` that the seeds' results determine."""
    derived, first = _union(result.derived for result in results), results[0]
    tasks = _union(result.overall for result in results)
    counts = {task: join([r.overall[task] for r in results if task in r.overall]) for task in tasks}
    accuracy, paired = compare(counts, derived)
    capabilities: dict[str, dict[str, list[PairCounts]]] = {}
    for result in results:
        for task, row in result.capabilities.items():
            for name, each in row.items():
                capabilities.setdefault(task, {}).setdefault(name, []).append(each)
    biases = {m: [r.length_bias[m] for r in results if m in r.length_bias] for m in first.length_bias}
    by_seed = [compare(result.overall, resamples=1)[0] for result in results]
    return {
        "seeds": tuple(seeds),
        "accuracy": accuracy,
        "paired": paired,
        "by_seed": {
            str(seed): {method: row[MEAN].value for method, row in estimates.items() if MEAN in row}
            for seed, estimates in zip(seeds, by_seed, strict=True)
        },
        "capabilities": {
            task: {name: compare({task: join(each)})[0][name][task] for name, each in row.items()}
            for task, row in capabilities.items()
        },
        "router": _router([result.router for result in results]),
        "calibration": {m: pooled([result.calibration[m] for result in results]) for m in first.calibration},
        "length_bias": {
            method: LengthBias(
                spearman=fmean(bias.spearman for bias in each),
                pearson=fmean(bias.pearson for bias in each),
                groups=sum(bias.groups for bias in each),
            )
            for method, each in biases.items()
        },
        "weights": {
            task: {n: fmean(r.weights[task][n] for r in results if n in r.weights.get(task, {})) for n in row}
            for task, row in first.weights.items()
        },
        "derived_tasks": tuple(derived),
        "gold_tasks": tuple(_union(result.gold for result in results)),
    }


def _router(results: Sequence[RouterResult]) -> RouterResult:
    """Pool the seeds' results; each counts by its prompts."""
    confusion: dict[str, Counter[str]] = {}
    for result in results:
        for task, row in result.confusion.items():
            confusion.setdefault(task, Counter()).update(row)
    prompts = sum(result.prompts for result in results)
    means: dict[str, float | None] = {}
    for name in ("accuracy", "fallback", "ece"):
        known = [(value, r.prompts) for r in results if (value := getattr(r, name)) is not None]
        complete = prompts and len(known) == len(results)
        means[name] = sum(value * count for value, count in known) / prompts if complete else None
    return RouterResult(prompts=prompts, confusion={task: dict(row) for task, row in confusion.items()}, **means)


def _union(parts: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))
