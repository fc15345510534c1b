"""Interference: how one model's accuracy on a task changes as it is trained on more tasks.

The single reward model is trained on 1, 2, 5, … tasks: the first ones of several random orders, so that a task is
measured alone and with more and more others. Overall preferences only. The kinds are defined in single_models.py:
`head` (linear on the frozen backbone) or `branch` (the upper layers trained as well). Test prompts choose nothing. Each
finished fit is stored, so a killed call continues.

python -m evidence.interference human_all --sizes 1 2 5 10 18 --seed 10 11 12
python -m evidence.interference human_all --kind branch --set extends=finetune --sizes 1 5 15 --orders 1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dmoerm.bootstrap import interval
from dmoerm.config import Config, load_config
from dmoerm.io.paths import write_file
from dmoerm.training.steps import Run
from evidence import measure
from evidence.best_of_n_estimates import resampled_gold
from evidence.single_models import FITS, Examples, prepared, right_shares

Row = dict[str, Any]
"""One fit: its tasks, the number of its groups, and task → prompt → share of the pairs in human order."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the data, as for `dmoerm train`; `branch` needs a recipe that trains one")
    parser.add_argument("--kind", choices=("head", "branch"), default="head")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 5, 10, 18], help="numbers of tasks")
    parser.add_argument("--orders", type=int, default=3, help="random orders of the tasks per seed")
    parser.add_argument("--seed", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting")
    parser.add_argument("--name", default="", help="store the table as results/interference-NAME.json")
    parser.add_argument("--output", type=Path, default=Path("runs/interference"), help="folder of the fits")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for seed in options.seed:
        settings = [f"seed={seed}", f"output={options.output}/seed{seed}", *options.set]
        rows += fits(load_config(options.config, settings), options.kind, options.sizes, options.orders)
    figures = summary(rows, options.sizes)
    Console().print(measure.table(figures))
    if options.name:
        command = f"python -m evidence.interference {' '.join(arguments or sys.argv[1:])}"
        title = f"Training on more tasks ({options.kind}, {len(options.seed)} seeds, {options.orders} orders)"
        measure.write(f"interference-{options.name}", command, [], tables={title: figures})


def fits(config: Config, kind: str, sizes: Sequence[int], orders: int) -> list[Row]:
    """Return a row for each task alone and for the first tasks of each order."""
    run, train, validation, test = prepared(config)
    known = sorted({e.task for e in test if e.task} & {e.task for e in train if e.task})
    chosen = {(task,) for task in known}
    for order in range(orders):
        shuffled = np.random.default_rng([config.seed, order]).permutation(known).tolist()
        chosen |= {tuple(sorted(shuffled[:size])) for size in sizes}
    rows = []
    for tasks in sorted(chosen, key=lambda names: (len(names), names)):
        parts = [[e for e in part if e.task in tasks] for part in (train, validation, test)]
        rows.append(_fit(run, kind, tasks, *parts))
    return rows


def _fit(run: Run, kind: str, tasks: Sequence[str], train: Examples, validation: Examples, test: Examples) -> Row:
    names = "\0".join(tasks)
    file = Path(run.config.output) / f"{kind}-{len(tasks)}-{hashlib.sha256(names.encode()).hexdigest()[:12]}.json"
    if not file.exists():
        rewards = FITS[kind](replace(run, folder=run.folder / file.stem), train, validation, test)
        right = right_shares((e.group, rewards[e.key].numpy()) for e in test)
        write_file(file, json.dumps({"tasks": tasks, "groups": len(train), "right": right}) + "\n")
    return json.loads(file.read_text()) | {"seed": run.config.seed}


# --- the table -----------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], sizes: Iterable[int]) -> list[dict[str, str]]:
    """Return, by number of tasks, the mean accuracy and its difference to models that are trained on one task alone.

    A prompt of a seed counts once: the mean over the fits in which its task is trained. Intervals are over prompts and
    seeds.
    """
    alone = {(row["seed"], *row["tasks"]): row["right"][row["tasks"][0]] for row in rows if len(row["tasks"]) == 1}
    seeds, figures = sorted({row["seed"] for row in rows}), []
    for size in sizes:
        values: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}  # task → prompt → seed → fits
        for row in rows:
            for task, prompts in row["right"].items() if len(row["tasks"]) == size else ():
                for prompt, share in prompts.items():
                    pair = share, share - alone[row["seed"], task][prompt]
                    by_seed = values.setdefault(task, {}).setdefault(prompt, [[] for _ in seeds])
                    by_seed[seeds.index(row["seed"])].append(pair)
        if not values:
            continue
        missing = (np.nan, np.nan)
        columns = {  # task → (S, P, 2)
            task: np.array([[np.mean(each, 0) if each else missing for each in row] for row in prompts.values()])
            .swapaxes(0, 1)
            for task, prompts in values.items()
        }  # fmt: skip
        by_task = {task: np.nanmean(column, axis=(0, 1)) for task, column in columns.items()}
        accuracy, difference = np.mean(list(by_task.values()), axis=0)
        drawn = [resampled_gold(column, i)[:, 1] for i, column in enumerate(columns.values())]
        low, high = interval(np.mean(drawn, axis=0), sum(column.shape[1] for column in columns.values()))
        worst, best = min(by_task, key=lambda t: by_task[t][1]), max(by_task, key=lambda t: by_task[t][1])
        ends = f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        figures.append(
            {
                "tasks": str(size),
                "groups": f"{np.mean([row['groups'] for row in rows if len(row['tasks']) == size]):,.0f}",
                "accuracy, %": f"{100 * accuracy:.1f}",
                "− alone, points": "–" if size == 1 else ends,
                "loses most": "–" if size == 1 else f"{worst} {100 * by_task[worst][1]:+.1f}",
                "gains most": "–" if size == 1 else f"{best} {100 * by_task[best][1]:+.1f}",
            }
        )
    return figures


if __name__ == "__main__":
    main()
