"""Every method on the same held-out prompts: what `dmoerm compare` measures, and its results.json.

cells (`cells.py`) → `Comparison`: accuracy with intervals over prompts, calibration, length bias, costs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from rich.console import Console

from ..config import Config
from ..errors import ConfigError
from ..evaluation.accuracy import compare, join
from ..evaluation.diagnostics import pooled
from ..evaluation.experiment_results import Comparison, Condition
from ..evaluation.results import (
    Estimate,
    LengthBias,
    RouterResult,
    versions,
)
from ..training.graph import Engine
from .ablations import ABLATIONS
from .method_suite import run_settings
from .runs import TRAINED, Cell, Outside, measure

BUDGET = (
    "All methods of a seed are trained on the same groups with the same held-out prompts, from the same embeddings. "
    "Single model, ensemble members, one model a task take the same optimiser steps as DMoERM's own heads, each kind "
    "with the L2 that is its own best on other splits (docs/log.md); the gated model's ridge penalties are chosen on "
    "the validation prompts."
)


def compare_methods(
    config: Config,
    seeds: Sequence[int] = (0, 1, 2),
    conditions: Mapping[str, tuple[float, float]] | None = None,
    members: int = 5,
    ablations: Sequence[str] = (),
    outside: Mapping[str, Outside] | None = None,
    command: str = "compare",
    console: Console | None = None,
    engine: Engine | None = None,
) -> Comparison:
    """Trains and measures what is missing under `config.output`; see the module.

    Args:
        conditions: name → shares of overall and of capability pairs of the training part that are reversed.
        members: models in an ensemble; 0: no baselines beside the single model and one a task.
        ablations: names out of `ABLATIONS`.
        outside: name → a method that is not trained here.
        engine: where the runs' steps are done; None: here.

    Raises:
        ConfigError: an unknown ablation, no seed, no condition.
        DataError: the data cannot be used.
    """
    conditions = conditions or {"clean": (0.0, 0.0)}
    if unknown := [name for name in ablations if name not in ABLATIONS]:
        raise ConfigError(f"unknown ablation {unknown[0]!r}; use some of {', '.join(ABLATIONS)}")
    if not seeds:
        raise ConfigError("a comparison takes a seed or more")
    console = console or Console(stderr=True)
    cells: dict[str, list[Cell]] = {}
    for name, flips in conditions.items():
        for seed in seeds:
            console.print(f"[bold]{name}, seed {seed}[/bold]", highlight=False)
            cell = measure(run_settings(config, name, flips, seed), members, ablations, outside or {}, console, engine)
            cells.setdefault(name, []).append(cell)
    first = next(iter(cells.values()))[0]
    return Comparison(
        command=command,
        config=config.model_dump(mode="json"),
        seeds=tuple(seeds),
        members=members,
        budget=BUDGET,
        versions=versions(),
        methods=_about(first, outside or {}),
        conditions={name: _condition(conditions[name], seeds, found) for name, found in cells.items()},
        costs=first.costs,
        derived_tasks=tuple(_union(cell.derived for row in cells.values() for cell in row)),
        gold_tasks=tuple(_union(cell.gold for row in cells.values() for cell in row)),
    )


def _about(cell: Cell, outside: Mapping[str, Outside]) -> dict[str, str]:
    known = TRAINED | {name: found.about for name, found in {**ABLATIONS, **outside}.items()}
    methods = dict.fromkeys(method for counts in cell.overall.values() for method in counts.right)
    return {method: known[method] for method in methods}


# --- all cells of a condition --------------------------------------------------------------------------------------


def _condition(flips: tuple[float, float], seeds: Sequence[int], cells: Sequence[Cell]) -> Condition:
    tasks = list(dict.fromkeys(task for cell in cells for task in cell.overall))
    counts = {task: join([c.overall[task].counts() for c in cells if task in c.overall]) for task in tasks}
    accuracy, paired = compare(counts, _union(cell.derived for cell in cells))
    alone = [compare({t: c.counts() for t, c in cell.overall.items()}, resamples=1)[0] for cell in cells]
    return Condition(
        flip_scores=flips[0],
        flip_capabilities=flips[1],
        accuracy=accuracy,
        paired=paired,
        by_seed={
            str(seed): {method: row["mean"].value for method, row in found.items() if "mean" in row}
            for seed, found in zip(seeds, alone, strict=True)
        },
        capabilities=_capabilities(cells),
        router=_router(cells),
        calibration={method: pooled([cell.calibration[method] for cell in cells]) for method in cells[0].calibration},
        length_bias={method: _length([cell.length_bias for cell in cells], method) for method in cells[0].length_bias},
    )


def _capabilities(cells: Sequence[Cell]) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {}
    every = {
        task: _union(cell.capabilities.get(task, {}) for cell in cells)
        for task in _union(c.capabilities for c in cells)
    }
    for task, names in every.items():
        for name in names:
            counts = [
                cell.capabilities[task][name].counts() for cell in cells if name in cell.capabilities.get(task, {})
            ]
            found.setdefault(task, {})[name] = compare({task: join(counts)})[0][name][task]
    return found


def _union(parts: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))


def _router(cells: Sequence[Cell]) -> RouterResult:
    confusion: dict[str, dict[str, int]] = {}
    for cell in cells:
        for own, row in cell.router.confusion.items():
            for likeliest, count in row.items():
                confusion.setdefault(own, {})[likeliest] = confusion.get(own, {}).get(likeliest, 0) + count
    prompts = sum(cell.router.prompts for cell in cells)
    right = sum(row.get(task, 0) for task, row in confusion.items())
    below = sum((cell.router.fallback or 0.0) * cell.router.prompts for cell in cells)
    known = prompts > 0
    return RouterResult(
        accuracy=right / prompts if known else None,
        prompts=prompts,
        fallback=below / prompts if known else None,
        confusion=confusion,
    )


def _length(cells: Sequence[Mapping[str, LengthBias]], method: str) -> LengthBias:
    found = [cell[method] for cell in cells if method in cell]
    return LengthBias(
        spearman=fmean(one.spearman for one in found),
        pearson=fmean(one.pearson for one in found),
        groups=sum(one.groups for one in found),
    )
