"""What each method's best of n is worth to people, or to a gold reward: what `dmoerm bon` measures.

condition × seed → panel → rewards of all samples → curves over n, averaged over seeds, with intervals over prompts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..config import Config
from ..errors import DataError
from ..evaluation.best_of_n import BestOfN, best_of_n, best_of_n_kl, over_prompts
from ..evaluation.experiment_results import BestOfNCondition, BestOfNResults, Fit, MethodCurve
from ..evaluation.results import Difference, versions
from ..schema import prompt_key
from ..training.graph import Engine
from .method_suite import Panel, Scoring, open_panel, run_settings, score_here
from .samples import Samples

Array = NDArray[np.float64]
_RESAMPLES = 2000


Scored = tuple[str, Array, Mapping[str, Array]]
"""A prompt's task, its samples' gold (N,), and method → rewards (N,)."""


def default_ns(samples: int) -> list[int]:
    """1, 2, 4, … and the number of samples itself."""
    ns = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    return ns if ns[-1] == samples else [*ns, samples]


def measure_best_of_n(
    config: Config,
    samples: Mapping[int, Sequence[Samples]],
    conditions: Mapping[str, tuple[float, float]],
    members: int = 5,
    source: str = "",
    ns: Sequence[int] | None = None,
    command: str = "bon",
    console: Console | None = None,
    engine: Engine | None = None,
    scoring: Scoring = score_here,
) -> BestOfNResults:
    """Trains what is missing under `config.output`, scores the samples by every method, and draws the curves.

    Args:
        samples: seed → its prompts' samples; the same ones for every seed, or each seed's own held-out groups.
        conditions: as in `compare_methods`.
        ns: values of n, to which 1 is added; None: powers of two up to the fewest samples of a prompt.
        engine: where the runs' steps are done; None: here.
        scoring: where the samples are scored; the results are the same.

    Raises:
        DataError: an n above the number of a prompt's samples, or a reward that is not finite.
    """
    console = console or Console(stderr=True)
    fewest = min(len(one.place) for rows in samples.values() for one in rows)
    ns = tuple(sorted({1, *ns}) if ns else default_ns(fewest))
    if ns[-1] > fewest or ns[0] < 1:
        raise DataError(
            f"cannot be estimated from {fewest} samples", field="n", value=ns[-1], hint=f"use 1 to {fewest}"
        )
    found = {}
    for name, flips in conditions.items():
        rows: dict[str, dict[int, list[Scored]]] = {}
        for seed, given in samples.items():
            console.print(f"[bold]{name}, seed {seed}[/bold]", highlight=False)
            panel = open_panel(run_settings(config, name, flips, seed), members, console, engine)
            for one, scored in zip(given, score_samples(panel, given, console, scoring), strict=True):
                rows.setdefault(_prompt(one), {}).setdefault(seed, []).append(scored)
        found[name] = _condition([list(by_seed.values()) for by_seed in rows.values()], ns)
    tasks = [one.query.task or "" for one in {_prompt(s): s for row in samples.values() for s in row}.values()]
    return BestOfNResults(
        command=command,
        config=config.model_dump(mode="json"),
        seeds=tuple(samples),
        versions=versions(),
        source=source,
        ns=ns,
        kl=tuple(best_of_n_kl(ns).tolist()),
        prompts={task: tasks.count(task) for task in dict.fromkeys(tasks)},
        samples=fewest,
        conditions=found,
    )


def score_samples(
    panel: Panel, samples: Sequence[Samples], console: Console, scoring: Scoring = score_here
) -> list[Scored]:
    """Each prompt's samples under every method of the panel."""
    chunks = [one.chunks() for one in samples]
    scored = iter(scoring(panel, [chunk for row in chunks for chunk in row], console))
    found: list[Scored] = []
    for one, row in zip(samples, chunks, strict=True):
        parts = [next(scored) for _ in row]
        rewards = {method: np.concatenate([part[method] for part in parts])[one.place] for method in panel.methods}
        found.append((one.query.task or "", one.gold[one.place], rewards))
    return found


def _prompt(samples: Samples) -> str:
    """What makes two prompts the same."""
    return f"{samples.query.task}\0{prompt_key(samples.query.prompt)}"


def _condition(rows: Sequence[Sequence[Sequence[Scored]]], ns: Sequence[int]) -> BestOfNCondition:
    """From each prompt's groups under every seed's models."""
    tasks = list(dict.fromkeys(seeds[0][0][0] for seeds in rows))
    sets = {task: [seeds for seeds in rows if seeds[0][0][0] == task] for task in tasks}
    if len(tasks) > 1:
        sets["all"] = list(rows)
    methods = list(rows[0][0][0][2])
    curves: dict[str, dict[str, MethodCurve]] = {}
    ends: dict[str, dict[str, Difference]] = {}
    for name, prompts in sets.items():
        found = {method: _curve(prompts, method, ns) for method in methods}
        curves[name] = {method: _summary(one) for method, one in found.items()}
        ends[name] = {
            f"dmoerm - {method}": _difference(found["dmoerm"].gold_by_prompt[:, -1] - one.gold_by_prompt[:, -1])
            for method, one in found.items()
            if method != "dmoerm"
        }
    return BestOfNCondition(curves=curves, at_the_end=ends)


def _curve(prompts: Sequence[Sequence[Sequence[Scored]]], method: str, ns: Sequence[int]) -> BestOfN:
    """A prompt's row is the mean over its groups, then over the seeds' models."""
    rows = np.array([np.mean([_rows(groups, method, ns) for groups in seeds], axis=0) for seeds in prompts])
    return over_prompts(rows[:, 0], rows[:, 1], ns)


def _rows(groups: Sequence[Scored], method: str, ns: Sequence[int]) -> Array:
    """Proxy, in standard deviations of a group's samples, and gold of the best of each n: (2, M), over the groups."""
    found = []
    for _, gold, rewards in groups:
        proxy = (rewards[method] - rewards[method].mean()) / max(rewards[method].std(), 1e-9)
        found.append([best_of_n(proxy, proxy, ns), best_of_n(proxy, gold, ns)])
    return np.mean(found, axis=0)


def _difference(by_prompt: Array) -> Difference:
    count = len(by_prompt)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) @ by_prompt / count
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(value=float(by_prompt.mean()), low=float(low), high=float(high))


def _summary(found: BestOfN) -> MethodCurve:
    curve = found.curve
    low, high = (curve.peak_interval or (None, None)) if curve else (None, None)
    fit = curve and Fit(
        alpha=curve.alpha, beta=curve.beta, peak=curve.peak, peak_low=low, peak_high=high, value=curve.value
    )
    return MethodCurve(
        proxy=tuple(found.proxy.tolist()),
        gold=tuple(found.gold.tolist()),
        low=tuple(found.gold_interval[:, 0].tolist()),
        high=tuple(found.gold_interval[:, 1].tolist()),
        fit=fit or None,
        falls_after=found.falls_after,
    )
