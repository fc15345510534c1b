"""Comparison of all methods on the same held-out prompts, for `dmoerm compare`.

runs (`runs.py`) → `Comparison`: accuracy with intervals over prompts and seeds, calibration, length bias, costs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from rich.console import Console

from ..config import Config
from ..errors import ConfigError
from ..evaluation.experiment_results import Comparison, Condition
from ..evaluation.metrics import compare, join, pooled
from ..evaluation.results import (
    Estimate,
    LengthBias,
    Overlap,
    RouterResult,
    versions,
)
from ..model.training_prompts import TrainingPrompts
from ..training.run import Engine
from .method_suite import Settings, run_settings
from .methods import Method, choose_methods
from .runs import RunResult, measure_run

BUDGET = (
    "All methods of a seed are trained on the same groups, from the same embeddings, and tested on the same held-out "
    "prompts. The single model, ensemble members, one model per task and the models on all labels are fitted as "
    "DMoERM's own heads: with l2: auto, each has its strength by cross-validation on the training part; otherwise all "
    "take as many optimizer steps. With l2: auto in phase 0, members with other starts and data orders would equal the "
    "single model and are not trained. umm_rm takes the steps of phase 0. The gated model's ridge penalties and the "
    "strength of its gate are chosen on the validation prompts."
)


def compare_methods(
    config: Config,
    seeds: Sequence[int] = (0, 1, 2),
    conditions: Mapping[str, Settings] | None = None,
    members: int = 5,
    methods: Sequence[str] = (),
    ablations: Sequence[str] = (),
    external: Sequence[Method] = (),
    command: str = "compare",
    console: Console | None = None,
    engine: Engine | None = None,
    include_trained: bool = False,
    training_prompts: Sequence[TrainingPrompts] = (),
) -> Comparison:
    """Train and measure what is missing under `config.output`: all registered methods, ablations and external methods.

    Args:
        conditions: name → settings that its runs change, such as {"data.flip_scores": 0.25}; None: none.
        members: models in an ensemble; 0: only the methods that a run contains, without baselines.
        methods: names of the methods to measure beside `dmoerm`; none: all but the ablations.
        ablations: names of ablations to add.
        external: methods that are not trained here.
        engine: where the runs' steps are executed; None: in this process.
        include_trained, training_prompts: see `measure_run`.

    Raises:
        ConfigError: a method is unknown, or there is no seed.
        DataError: the data cannot be used.
    """
    conditions = conditions or {"clean": {}}
    chosen = [*choose_methods(methods, ablations), *external]
    if not seeds:
        raise ConfigError("a comparison needs at least one seed")
    console = console or Console(stderr=True)
    runs: dict[str, list[RunResult]] = {}
    for name, changes in conditions.items():
        for seed in seeds:
            console.print(f"{name}, seed {seed}", style="bold", highlight=False, markup=False)
            settings = run_settings(config, name, changes, seed)
            first = not runs  # only the first run's costs are reported
            run = measure_run(settings, members, chosen, console, engine, include_trained, training_prompts, first)
            runs.setdefault(name, []).append(run)
    every = [run for row in runs.values() for run in row]
    return Comparison(
        command=command,
        config=config.model_dump(mode="json"),
        seeds=tuple(seeds),
        members=members,
        budget=BUDGET,
        versions=versions(),
        overlap=_overlap([run.overlap for run in every]),
        methods=_descriptions(every[0], chosen),
        conditions={name: _condition(conditions[name], seeds, row) for name, row in runs.items()},
        costs=every[0].costs,
        derived_tasks=tuple(_union(run.derived for run in every)),
        gold_tasks=tuple(_union(run.gold for run in every)),
    )


def _descriptions(run: RunResult, chosen: Sequence[Method]) -> dict[str, str]:
    measured = dict.fromkeys(method for counts in run.overall.values() for method in counts.right)
    descriptions = {method.name: method.description for method in chosen}
    return {method: descriptions[method] for method in measured}


def _overlap(overlaps: Sequence[Overlap]) -> Overlap:
    """Return the largest overlap of any run."""
    return max(overlaps, key=lambda overlap: overlap.groups)


# --- all runs of a condition --------------------------------------------------------------------------------------


def _condition(changes: Settings, seeds: Sequence[int], runs: Sequence[RunResult]) -> Condition:
    tasks = list(dict.fromkeys(task for run in runs for task in run.overall))
    counts = {task: join([c.overall[task].counts() for c in runs if task in c.overall]) for task in tasks}
    accuracy, paired = compare(counts, _union(run.derived for run in runs))
    by_seed = [compare({t: c.counts() for t, c in run.overall.items()}, resamples=1)[0] for run in runs]
    return Condition(
        settings=dict(changes),
        accuracy=accuracy,
        paired=paired,
        by_seed={
            str(seed): {method: row["mean"].value for method, row in estimates.items() if "mean" in row}
            for seed, estimates in zip(seeds, by_seed, strict=True)
        },
        capabilities=_capabilities(runs),
        router=_router(runs),
        calibration={method: pooled([run.calibration[method] for run in runs]) for method in runs[0].calibration},
        length_bias={method: _length([run.length_bias for run in runs], method) for method in runs[0].length_bias},
    )


def _capabilities(runs: Sequence[RunResult]) -> dict[str, dict[str, Estimate]]:
    estimates: dict[str, dict[str, Estimate]] = {}
    names_by_task = {
        task: _union(run.capabilities.get(task, {}) for run in runs) for task in _union(c.capabilities for c in runs)
    }
    for task, names in names_by_task.items():
        for name in names:
            counts = [run.capabilities[task][name].counts() for run in runs if name in run.capabilities.get(task, {})]
            estimates.setdefault(task, {})[name] = compare({task: join(counts)})[0][name][task]
    return estimates


def _union(parts: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))


def _router(runs: Sequence[RunResult]) -> RouterResult:
    confusion: dict[str, dict[str, int]] = {}
    for run in runs:
        for task_name, row in run.router.confusion.items():
            for likeliest, count in row.items():
                confusion.setdefault(task_name, {})[likeliest] = confusion.get(task_name, {}).get(likeliest, 0) + count
    prompts = sum(run.router.prompts for run in runs)
    right = sum(row.get(task, 0) for task, row in confusion.items())
    below = sum((run.router.fallback or 0.0) * run.router.prompts for run in runs)
    errors = [run.router.ece * run.router.prompts for run in runs if run.router.ece is not None]
    known = prompts > 0
    return RouterResult(
        accuracy=right / prompts if known else None,
        prompts=prompts,
        fallback=below / prompts if known else None,
        ece=sum(errors) / prompts if known and len(errors) == len(runs) else None,
        confusion=confusion,
    )


def _length(runs: Sequence[Mapping[str, LengthBias]], method: str) -> LengthBias:
    results = [run[method] for run in runs if method in run]
    return LengthBias(
        spearman=fmean(result.spearman for result in results),
        pearson=fmean(result.pearson for result in results),
        groups=sum(result.groups for result in results),
    )
