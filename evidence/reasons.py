"""Whether an explanation names what people see: the capability that speaks most for the response a model prefers.

Of each pair of held-out responses whose capabilities people graded, the model prefers one. These name the capability:

    contribution    the one that contributes most to the preferred response's lead (`Score.advantage`)
    raw             the one with the largest lead in capability scores, which are in standard deviations
    chance          any one, each as likely

It is right if people gave the preferred response the higher grade on it; equal grades are not. `possible` is the share
of the pairs with such a capability. Pairs are of all held-out groups, and of those that people order overall as the
model does. A task whose experts have no weight names none, and is left out.

python -m evidence.reasons human --seed 10 11 12 --name human
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dmoerm.config import Config, load_config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.metrics import PairCounts, compare, join
from dmoerm.evaluation.results import MEAN
from dmoerm.model import DMoERM
from dmoerm.schema import Group, prompt_key
from dmoerm.scores import Score
from dmoerm.training import train
from evidence import measure

WAYS = ("contribution", "raw", "chance", "possible")
Counts = dict[str, dict[str, np.ndarray]]
"""Task → prompt → (1 + ways,): the pairs, and how many of them each way explains rightly."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the seeds that are missing, print the tables and store them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, or the name of a shipped config")
    parser.add_argument("--seed", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting")
    parser.add_argument("--name", default="", help="store the tables as results/reasons-NAME.json")
    parser.add_argument("--output", type=Path, default=Path("runs/reasons"))
    options = parser.parse_args(arguments)
    everything, agreed = list[Counts](), list[Counts]()
    for seed in options.seed:
        settings = [f"seed={seed}", f"output={options.output}/seed{seed}", *options.set]
        for counts, part in zip((everything, agreed), explained(load_config(options.config, settings)), strict=True):
            counts.append(part)
    seeds = f"{len(options.seed)} seeds" if len(options.seed) > 1 else "one seed"
    tables = {
        f"The named capability is one on which people prefer the response too, % of pairs ({seeds})": table(everything),
        "The same, on the pairs that people order overall as the model does": table(agreed),
    }
    for figures in tables.values():
        Console().print(measure.table(figures))
    if options.name:
        command = f"python -m evidence.reasons {' '.join(arguments or sys.argv[1:])}"
        measure.write(f"reasons-{options.name}", command, [], tables=tables)


def explained(config: Config) -> tuple[Counts, Counts]:
    """Train a model, and count over its held-out prompts; a finished run is not trained again."""
    train(config, Console(quiet=True))
    model = DMoERM.from_pretrained(Path(config.output) / "model")
    groups = [group for group in load_splits(config).test if group.task and len(group.capabilities) > 1]
    everything, agreed = Counts(), Counts()
    scored = model.score([g.prompt for g in groups], [list(g.responses) for g in groups])
    for group, scores in zip(groups, scored, strict=True):
        ordered = {(pair.better, pair.worse) for pair in group.pairs()}
        for better, worse, row in rows(group, scores):
            for counts in (everything, *([agreed] if (better, worse) in ordered else [])):
                by_prompt = counts.setdefault(group.task or "", {})
                by_prompt[prompt_key(group.prompt)] = by_prompt.get(prompt_key(group.prompt), 0) + row
    return everything, agreed


def rows(group: Group, scores: Sequence[Score]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the preferred response of each pair, the other one, and the counts of the pair."""
    for i, j in itertools.combinations(range(len(scores)), 2):
        better, worse = (i, j) if scores[i].reward > scores[j].reward else (j, i)
        first, second = scores[better], scores[worse]
        if first.task != group.task or first.reward == second.reward:
            continue
        lead = first.advantage(second)
        graded: dict[str, bool] = {}
        for name in first.capabilities.keys() & group.capabilities.keys() if second.capabilities else ():
            own, other = group.capabilities[name][better], group.capabilities[name][worse]
            if own is not None and other is not None:
                graded[name] = own > other
        if len(graded) < 2 or not any(lead[name] for name in graded):
            continue
        contribution = graded[max(sorted(graded), key=lambda name: lead[name])]
        raw = graded[max(sorted(graded), key=lambda name: first.capabilities[name] - second.capabilities[name])]
        chance = sum(graded.values()) / len(graded)
        yield better, worse, np.array([1.0, contribution, raw, chance, any(graded.values())])


def table(seeds: Sequence[Counts]) -> list[dict[str, str]]:
    """Return one row per task, and the mean: shares and differences with 95 % intervals over prompts and seeds."""
    tasks = sorted(set.intersection(*(set(counts) for counts in seeds)))
    counts = {task: join([pair_counts(by_task[task]) for by_task in seeds]) for task in tasks}
    shares, differences = compare(counts)
    result = []
    for task in [*tasks, MEAN]:
        row = {"task": task, "prompts": str(shares["dmoerm"][task].prompts), "pairs": str(shares["dmoerm"][task].pairs)}
        for way in WAYS:
            row[way] = f"{100 * shares['dmoerm' if way == 'contribution' else way][task].value:.1f}"
        for way in ("raw", "chance"):
            found = differences[f"dmoerm - {way}"][task]
            row[f"contribution − {way}"] = "{:+.1f} ({:+.1f} to {:+.1f})".format(
                *(100 * value for value in (found.value, found.low, found.high))
            )
        result.append(row)
    return result


def pair_counts(by_prompt: dict[str, np.ndarray]) -> PairCounts:
    """Return the counts in the form of `compare`, which measures the differences of `dmoerm`."""
    pairs, *right = np.array(list(by_prompt.values())).T[:, None]
    return PairCounts(list(by_prompt), pairs, dict(zip(("dmoerm", *WAYS[1:]), right, strict=True)))


if __name__ == "__main__":
    main()
