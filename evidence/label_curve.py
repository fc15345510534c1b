"""Accuracy, time and best-of-n of the recipes over the number of training groups: where does fine-tuning begin to pay?

    python -m evidence.label_curve --task chitchat --size 50 300 1000 --recipe frozen paper --layers 2 1 --name testbed
    python -m evidence.label_curve --files humour.jsonl --size 300 1000 --layers 20 16 --output runs/label-curve-humour

    frozen     heads on the pretrained layers, fitted exactly
    finetune   a trained branch for each task, heads of the capabilities on it, fitted exactly
    lora       a LoRA for each capability on the trained branch
    paper      all weights, a LoRA for each capability, the MLP over embeddings beside a linear map of the scores

The testbed's groups are pairs; the test part is the gold order of four responses to each of `--test` further prompts. A
larger size adds groups to the same ones, and all recipes of a seed have the same groups, noise and test part. Each run
fills a cache of its own, so its seconds are the whole training. A point that is stored is not measured again. The
seconds are of as many threads as OMP_NUM_THREADS says; other work on the machine lengthens them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console

from dmoerm.config import Config, changed, load_config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.comparison import measure_seed, open_suite
from dmoerm.evaluation.methods import choose_methods
from dmoerm.evaluation.metrics import PairCounts, compare, join
from dmoerm.evaluation.results import Difference, Estimate
from dmoerm.io.paths import write_file
from dmoerm.schema import Group, prompt_key
from dmoerm.taxonomy import load_taxonomy
from dmoerm.training import train
from evidence import testbed
from evidence.best_of_n_estimates import best_of_n
from evidence.bon import from_testbed, score_samples
from evidence.conditions import Data, condition_run, take_prompts
from evidence.measure import table as screen_table
from evidence.measure import write

LORA = "{fit: trained, head_first: true, l2: 2, lora: {rank: 8, alpha: 16, dropout: 0.1}, epochs: 2, evaluations: 2}"
ONE_TASK = ["phase0.epochs=0", "phase0.head_first=true"]  # a trained general model would be the task's again
RECIPES = {
    "frozen": ["extends=frozen"],
    "finetune": ["extends=finetune", *ONE_TASK],
    "lora": ["extends=finetune", *ONE_TASK, f"phase2={LORA}"],
    "paper": ["extends=paper", *ONE_TASK],
}
NOISE = {"clean": {}, "noisy": {"flip_scores": 0.25, "flip_capabilities": 0.15}}
FEW = 300  # groups up to which all seeds are trained
SAMPLED, SAMPLES = 12, 64  # prompts of each task, and responses to each, for best-of-n of the first seed
Point = dict[str, Any]


def generated(tasks: Sequence[str], size: int, test: int, seed: int) -> Data:
    """Return `size` pairs of each task and the gold order of four responses to each of `test` other prompts."""
    parts: tuple[list[Group], list[Group]] = [], []
    for task in tasks:
        items = testbed.prompts(task, test + size, seed)
        parts[1].extend(testbed.gold_group(group) for group in testbed.labeled(items[:test], 4, seed))
        parts[0].extend(testbed.labeled(items[test:], 2, seed, start=test))
    taxonomy = load_taxonomy("paper-en")
    chosen = {name: task for name, task in taxonomy.tasks.items() if name in tasks}
    return Data(*parts, taxonomy=taxonomy.model_copy(update={"tasks": chosen}))


def human(config: Config, size: int, test: int | None = None) -> Data:
    """Return about `size` groups of each task to train on, and about `test` held-out groups, or all of them."""
    data = load_splits(config)

    def part(groups: Sequence[Group], count: int | None) -> list[Group]:
        tasks: dict[str, list[Group]] = {}
        for group in groups:
            tasks.setdefault(group.task or "", []).append(group)
        chosen: list[Group] = []
        for rows in tasks.values():
            kept = take_prompts(rows, min((count or len(rows)) / len(rows), 1), f"{config.seed}/size")
            chosen += [group for group in rows if prompt_key(group.prompt) in kept]
        return chosen

    return Data(part(data.train, size), part(data.test, test), data.taxonomy)


def measure(recipe: str, config: Config, data: Data, noise: str, folder: Path, sample: bool = True) -> Point:
    """Train one recipe; return its seconds, the counts of the held-out pairs, and with `sample` best-of-n's gold."""
    method = choose_methods(["dmoerm" if recipe == "paper" else "per_task"])
    run = condition_run(changed(config, {"output": str(folder)}), noise, NOISE[noise], config.seed, data=data)
    run = changed(run, {"cache": str(folder / "cache")})
    console, started = Console(stderr=True), time.monotonic()
    finished = train(run, console)
    seconds = time.monotonic() - started
    steps = {
        step: {key: round(figures[key], 3) for key in ("seconds", "loss", "accuracy") if key in figures}
        for step, figures in finished.metrics().items()
    }
    point: Point = {"seconds": seconds, "steps": steps}
    result = measure_seed(run, method, console)
    point["counts"] = {
        task: {"prompts": list(c.prompts), "pairs": c.pairs[0].tolist()}
        | {"right": {m: row[0].tolist() for m, row in c.right.items()}}
        for task, c in result.overall.items()
    }
    if sample and data.test[0].source == "testbed":
        suite, gold = open_suite(run, method, console), {}
        for task in data.taxonomy.tasks:
            samples = from_testbed(testbed.prompts(task, SAMPLED, config.seed), SAMPLES, config.seed + 1)
            for row in score_samples(suite, samples):
                for m, rewards in row.rewards.items():
                    gold.setdefault(m, []).append(float(best_of_n(rewards, row.gold, [SAMPLES])[0]))
        point["best_of_n"] = gold
    return point


def points(options: argparse.Namespace, base: Config) -> Iterator[tuple[tuple[str, str, int, int], Point]]:
    """Yield the stored and the newly measured points: (recipe, noise, size, seed) and its figures."""
    for size in options.size:
        for seed in options.seed if size <= FEW else options.seed[:1]:
            for noise in options.noise:
                for recipe in options.recipe:
                    name = f"{recipe}-{noise}-{size}-{seed}"
                    file = Path(base.output) / "points" / f"{name}.json"
                    key = recipe, noise, size, seed
                    if file.exists():
                        yield key, json.loads(file.read_text(encoding="utf-8"))
                    else:
                        yield key, new_point(options, base, key, file)


def new_point(options: argparse.Namespace, base: Config, key: tuple[str, str, int, int], file: Path) -> Point:
    """Measure a point, store it, and remove its run."""
    recipe, noise, size, seed = key
    layers, branch = options.layers
    own = [*RECIPES[recipe], f"backbone.num_layers={layers}"]
    own += [f"backbone.branch_layer={0 if recipe == 'paper' else branch}", f"seed={seed}", *options.set]
    config = load_config(None, [*own, f"output={base.output}", f"data.files=[{','.join(options.files)}]"])
    data = human(config, size) if options.files else generated(options.task, size, options.test, seed)
    folder = Path(base.output) / "runs" / file.stem
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run: a resumed one has other seconds
    point = measure(recipe, config, data, noise, folder, seed == options.seed[0])
    write_file(file, json.dumps(point))
    shutil.rmtree(folder)
    (row,) = table(summary({("frozen", *key[1:]): point}))
    Console(stderr=True).print(f"{file.stem}: {row}", markup=False)
    return point


# --- the table -----------------------------------------------------------------------------------------------------


def joined(rows: Sequence[Point], method: str, name: str) -> dict[str, PairCounts]:
    """Return task → the seeds' counts of a method under another name."""
    return {task: join([_counts(row["counts"][task], method, name) for row in rows]) for task in rows[0]["counts"]}


def _counts(stored: Mapping[str, Any], method: str, name: str) -> PairCounts:
    pairs, right = np.array([stored["pairs"]]), np.array([stored["right"][method]])
    return PairCounts(stored["prompts"], pairs, {name: right})


def summary(known: Mapping[tuple[str, str, int, int], Point]) -> list[Point]:
    """Return a row for each noise, size and recipe: accuracy, its difference to `frozen`, gold of the best, seconds."""
    rows = []
    for noise, size in sorted({key[1:3] for key in known}):
        of = {
            recipe: {seed: point for (r, *place, seed), point in known.items() if [r, *place] == [recipe, noise, size]}
            for recipe in RECIPES
        }
        for recipe, seeds in of.items():
            if not seeds:
                continue
            counts = joined(list(seeds.values()), "dmoerm", "dmoerm")
            same = [of["frozen"][seed] for seed in seeds if seed in of["frozen"]]
            if recipe != "frozen" and len(same) == len(seeds):
                frozen = joined(same, "dmoerm", "frozen")
                counts = {task: replace(c, right={**c.right, **frozen[task].right}) for task, c in counts.items()}
            accuracy, paired = compare(counts)
            golds = [gold for point in seeds.values() for gold in point.get("best_of_n", {}).get("dmoerm", ())]
            row = {"noise": noise, "size": size, "recipe": recipe, "seeds": len(seeds)}
            row |= {"accuracy": _points(accuracy["dmoerm"]["mean"]), "gold": fmean(golds) if golds else None}
            row |= {"minus": _points(paired["dmoerm - frozen"]["mean"]) if paired else None}
            rows.append(row | {"seconds": fmean(point["seconds"] for point in seeds.values())})
    return rows


def _points(estimate: Estimate | Difference) -> list[float]:
    return [round(100 * value, 2) for value in (estimate.value, estimate.low, estimate.high)]


def table(rows: Sequence[Point]) -> list[dict[str, str]]:
    """Return the rows as text."""
    return [
        {
            "labels": row["noise"],
            "groups of a task": f"{row['size']:,}",
            "recipe": row["recipe"],
            "seeds": str(row["seeds"]),
            "accuracy, %": "{:.1f} ({:.1f} to {:.1f})".format(*row["accuracy"]),
            "minus frozen": "{:+.1f} ({:+.1f} to {:+.1f})".format(*row["minus"]) if row["minus"] else "–",
            f"gold of the best of {SAMPLES}": "–" if row["gold"] is None else f"{row['gold']:.3f}",
            "seconds": f"{row['seconds']:,.0f}",
        }
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=[], help="human-labeled data in place of the testbed")
    parser.add_argument("--task", nargs="+", default=list(testbed.TASKS), help="tasks of the testbed")
    parser.add_argument("--size", nargs="+", type=int, default=[50, 100, 300, 1000], help="groups of each task")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2], help=f"above {FEW} groups only the first one")
    parser.add_argument("--noise", nargs="+", choices=list(NOISE), default=list(NOISE))
    parser.add_argument("--recipe", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--layers", nargs=2, type=int, default=[6, 4], help="of the backbone, and of the trunk")
    parser.add_argument("--test", type=int, default=150, help="testbed prompts of each task to test on")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="A.B=VALUE", help="change settings")
    parser.add_argument("--name", help="store the results as results/label-curve-NAME.json")
    parser.add_argument("--output", type=Path, default=Path("runs/label-curve"))
    options = parser.parse_args(arguments)
    base = load_config(None, [f"output={options.output}"])
    known = dict(points(options, base))
    command = " ".join(["python", "-m", "evidence.label_curve", *(sys.argv[1:] if arguments is None else arguments)])
    rows = summary(known)
    tables = {"Over the number of training groups": table(rows)}
    Console().print(screen_table(table(rows)))
    if options.name:
        write(f"label-curve-{options.name}", command, [], tables=tables, curve=rows)


if __name__ == "__main__":
    main()
