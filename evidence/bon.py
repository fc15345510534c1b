"""Best-of-n: the gold reward of the response that each method chooses from n samples of a prompt.

    python -m evidence.bon testbed --samples 2048 --prompts-per-task 8 --seed 10
    python -m evidence.bon human_all --from graded --samples 5

    testbed   the generator's prompts that no training part has, any number of samples, and the gold reward
    graded    held-out groups with many responses that people graded

condition × seed → suite → rewards of all samples → curves over n, with intervals over prompts and seeds. Runs of
`evidence.compare` in the same folder are reused. Shapes: S seeds, P prompts, N samples of a prompt, M values of n.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dmoerm.bootstrap import interval
from dmoerm.config import Config, changed
from dmoerm.data.splits import load_splits
from dmoerm.errors import DataError
from dmoerm.evaluation.comparison import Suite, open_suite
from dmoerm.evaluation.methods import Method
from dmoerm.evaluation.results import Difference, Document, ResultModel, versions
from dmoerm.evaluation.scored_groups import score_groups
from dmoerm.schema import Group, Query, is_empty, prompt_key
from evidence import testbed
from evidence.best_of_n_estimates import MethodCurve, best_of_n, best_of_n_kl, resampled_gold, summarize_prompts
from evidence.compare import command_line, options_parser, parsed, write_results
from evidence.conditions import Changes, condition_run, run_data
from evidence.testbed.prompts import PromptItem

Array = NDArray[np.float64]
_CHUNK = 64  # responses scored as one query
_SHARD = 32  # queries scored together


# --- samples -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """The samples of one prompt; equal texts are stored and scored once.

    Attributes:
        query: the prompt and the distinct responses.
        index: (N,), the response of each sample.
        gold: the gold of each distinct response.
    """

    query: Query
    index: NDArray[np.int64]
    gold: NDArray[np.float64]

    def chunks(self) -> list[Query]:
        """Split the query into chunks that fit a scoring pass."""
        parts = [self.query.responses[i : i + _CHUNK] for i in range(0, len(self.query.responses), _CHUNK)]
        return [self.query.model_copy(update={"responses": part}) for part in parts]


def from_testbed(prompts: Sequence[PromptItem], count: int, seed: int = 0) -> list[Samples]:
    """Draw `count` independent samples per prompt from the testbed's generator; samples may be equal."""
    drawn = []
    for item in prompts:
        texts = testbed.sample_responses(item, count, seed)
        index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        gold = np.array([testbed.gold_reward(item.task, item.prompt, text) for text in index])
        query = Query(task=item.task, prompt=item.prompt, responses=tuple(index))
        drawn.append(Samples(query, np.array([index[text] for text in texts]), gold))
    return drawn


def from_groups(groups: Iterable[Group], least: int) -> list[Samples]:
    """Take groups of `least` responses or more, with their scores as gold.

    Equal responses of a group are merged, with their mean grade. Gold is standardized per task, so that tasks with
    different scales can be averaged. Raises `DataError` if no group is large enough.
    """
    kept = []
    for group in groups:
        if group.grades is None or any(grade is None for grade in group.grades):
            continue
        grades: dict[str, list[float]] = {}
        for text, grade in zip(group.responses, group.grades, strict=True):
            grades.setdefault(text, []).append(float(grade or 0.0))
        if len(grades) >= least:
            gold = np.array([fmean(given) for given in grades.values()])
            query = Query(id=group.id, task=group.task, prompt=group.prompt, responses=tuple(grades))
            kept.append(Samples(query, np.arange(len(gold)), gold))
    if not kept:
        raise DataError(f"no group has {least} graded responses or more", field="responses", hint="lower --samples")
    tasks: dict[str | None, list[NDArray[np.float64]]] = {}
    for row in kept:
        tasks.setdefault(row.query.task, []).append(row.gold)
    scales = {task: (np.concatenate(gold).mean(), np.concatenate(gold).std() or 1.0) for task, gold in tasks.items()}
    return [replace(row, gold=(row.gold - mean) / std) for row in kept for mean, std in [scales[row.query.task]]]


def unseen_prompts(count: int, seen: Sequence[Group], seed: int = 0) -> list[PromptItem]:
    """Return `count` prompts of each testbed task that none of the groups has."""
    known = {prompt_key(group.prompt) for group in seen}
    unseen = []
    for task in testbed.TASKS:
        fresh = [item for item in testbed.prompts(task, None, seed) if prompt_key(item.prompt) not in known]
        if len(fresh) < count:
            raise DataError(f"{task} has {len(fresh)} prompts that no training part has", field="prompts", value=count)
        unseen += fresh[:count]
    return unseen


class BestOfNCondition(ResultModel):
    """All methods under one condition."""

    curves: dict[str, dict[str, MethodCurve]]
    """Task (and `all`) → method → its curve."""
    at_the_end: dict[str, dict[str, Difference]]
    """Task (and `all`) → `dmoerm - method` → difference of gold at the largest n."""


class BestOfNResults(Document):
    """best_of_n.json of `python -m evidence.bon`."""

    kind: Literal["best_of_n"] = "best_of_n"
    command: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    versions: dict[str, str]
    source: str
    """The source of the samples, in words."""
    ns: tuple[int, ...]
    kl: tuple[float, ...]
    """log n − (n − 1) / n for each n, in nats."""
    prompts: dict[str, int]
    samples: int
    """The minimum number of samples of a prompt."""
    conditions: dict[str, BestOfNCondition]


# --- best of n -----------------------------------------------------------------------------------------------------


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


def measure_best_of_n(
    config: Config,
    samples: Mapping[int, Sequence[Samples]],
    conditions: Mapping[str, Changes],
    methods: Sequence[Method],
    ns: Sequence[int] | None = None,
    prompts: int = 96,
    source: str = "",
    command: str = "bon",
    console: Console | None = None,
) -> BestOfNResults:
    """Train what is missing, score all samples and estimate the curves.

    Args:
        samples: seed → the samples that the models of the seed score.
        ns: values of n; the default is powers of two.
        prompts: testbed prompts per task of the runs.
        source: the source of the samples, in words.
    """
    console = console or Console(stderr=True)
    fewest = min(len(sample.index) for rows in samples.values() for sample in rows)
    powers = [2**i for i in range(fewest.bit_length())]  # 1, 2, 4, … and the number of samples itself
    checked = tuple(sorted({1, *(ns or [*powers, fewest])}))
    if wrong := [n for n in checked if not 1 <= n <= fewest]:
        raise DataError(
            f"cannot be estimated from {fewest} samples", field="n", value=wrong[0], hint=f"use 1 to {fewest}"
        )
    measured = {}
    for name, changes in conditions.items():
        rows: dict[str, dict[int, list[ScoredSamples]]] = {}
        for seed, seed_samples in samples.items():
            console.print(f"{name}, seed {seed}", style="bold", highlight=False, markup=False)
            suite = open_suite(condition_run(config, name, changes, seed, prompts), methods, console)
            for sample, scored in zip(seed_samples, score_samples(suite, seed_samples), strict=True):
                rows.setdefault(_prompt(sample), {}).setdefault(seed, []).append(scored)
        measured[name] = _condition(list(rows.values()), checked)
    tasks = {_prompt(sample): sample.query.task or "" for row in samples.values() for sample in row}
    return BestOfNResults(
        command=command,
        config=config.model_dump(mode="json"),
        seeds=tuple(samples),
        versions=versions(),
        source=source,
        ns=checked,
        kl=tuple(best_of_n_kl(checked).tolist()),
        prompts=dict(Counter(tasks.values())),
        samples=fewest,
        conditions=measured,
    )


def score_samples(suite: Suite, samples: Sequence[Samples]) -> list[ScoredSamples]:
    """Score each prompt's samples by every method of the suite that scores in its passes.

    A prompt's samples are scored in chunks; members are combined once all of them are scored.
    """
    run, scorers = suite.context.run, suite.scorers
    chunks = [prompt.chunks() for prompt in samples]
    queries = [chunk for row in chunks for chunk in row]
    members: list[Mapping[str, Array]] = []
    for start in range(0, len(queries), _SHARD):
        scored = score_groups(run.model, queries[start : start + _SHARD], None, Console(quiet=True), run.cache, scorers)
        members += [group.members for group in scored]
    remaining, results = iter(members), list[ScoredSamples]()
    for prompt, row in zip(samples, chunks, strict=True):
        parts = [next(remaining) for _ in row]
        joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        empty = [i for i, text in enumerate(prompt.query.responses) if is_empty(text)]
        rewards = {method: values[prompt.index] for method, values in suite.combine(joined, empty).items()}
        results.append(ScoredSamples(prompt.query.task or "", prompt.gold[prompt.index], rewards))
    return results


def _prompt(samples: Samples) -> str:
    """Return the key of a prompt and its task; equal prompts of one task have the same key."""
    return f"{samples.query.task}\0{prompt_key(samples.query.prompt)}"


def _condition(rows: Sequence[Mapping[int, Sequence[ScoredSamples]]], ns: Sequence[int]) -> BestOfNCondition:
    """Compute the curves of all methods from each prompt's groups under each seed's models."""
    task_of = [next(iter(seeds.values()))[0].task for seeds in rows]
    sets = {
        task: [row for row, own in zip(rows, task_of, strict=True) if own == task] for task in dict.fromkeys(task_of)
    }
    if len(sets) > 1:
        sets["all"] = list(rows)
    methods = list(next(iter(rows[0].values()))[0].rewards)
    curves: dict[str, dict[str, MethodCurve]] = {}
    ends: dict[str, dict[str, Difference]] = {}
    for name, prompts in sets.items():
        seeds = sorted({seed for row in prompts for seed in row})
        found: dict[str, Array] = {}  # method → (2, S, P, M); NaN where a seed does not have the prompt
        for method in methods:
            found[method] = np.full((2, len(seeds), len(prompts), len(ns)), np.nan)
            for p, row in enumerate(prompts):
                for seed, groups in row.items():
                    found[method][:, seeds.index(seed), p] = _rows(groups, method, ns)
        curves[name] = {method: summarize_prompts(values[0], values[1], ns) for method, values in found.items()}
        ends[name] = {}
        for method in (m for m in methods if m != "dmoerm"):
            by_prompt = (found["dmoerm"] - found[method])[1, :, :, -1:]
            low, high = interval(resampled_gold(by_prompt)[:, 0], len(prompts))
            value = float(np.nanmean(by_prompt, axis=1).mean())
            ends[name][f"dmoerm - {method}"] = Difference(value=value, low=float(low), high=float(high))
    return BestOfNCondition(curves=curves, at_the_end=ends)


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


def options_of_bon() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = options_parser(__doc__)
    parser.add_argument("--from", dest="source", choices=("testbed", "graded"), default="testbed")
    parser.add_argument("--samples", type=int, default=12_500, help="per prompt; of graded groups, at least so many")
    parser.add_argument("--prompts-per-task", type=int, default=2, help="testbed prompts per task to sample for")
    parser.add_argument("--n", type=int, action="append", help="a value of n; default: powers of two")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure best-of-n."""
    options = parsed(options_of_bon(), arguments)
    config, seeds, source = options.config, options.seeds, "held-out groups, graded by people"
    by_seed = {seed: changed(config, {"seed": seed}) for seed in seeds}
    if options.source == "graded":
        samples = {seed: from_groups(load_splits(own).test, options.samples) for seed, own in by_seed.items()}
    else:  # the same samples for all seeds, of prompts that no seed's training part has
        train = [group for own in by_seed.values() for group in run_data(own, options.prompts).train]
        drawn = from_testbed(unseen_prompts(options.prompts_per_task, train), options.samples)
        samples = dict.fromkeys(seeds, drawn)
        source = f"testbed, {options.samples} samples per prompt"
    command = command_line("bon", arguments)
    results = measure_best_of_n(
        config, samples, options.conditions, options.chosen, options.n, options.prompts, source, command
    )
    path = Path(config.output) / "best_of_n.json"
    write_results(results, path)


if __name__ == "__main__":
    main()
