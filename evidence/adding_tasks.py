"""New kinds of prompts arrive one after the other: what is forgotten, and what an arrival takes.

    dmoerm      the new task's experts and aggregator are trained, and the router on all prompts; the other task models
                and the general model stay as they are, which is checked bit by bit
    retrained   one reward model for all tasks, trained again on the labels of all tasks
    continued   the same model, trained on with the labels of the new task: its head is pulled toward its old weights,
                by a strength that cross-validation on the new task's labels chooses

Heads on frozen embeddings, overall and capability labels for dmoerm, overall labels for the single models, as in
`dmoerm compare`. Accuracies are on held-out prompts; the prompts of later tasks are not known.

python -m evidence.adding_tasks --seed 10 11 12 --name human
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from dmoerm.config import Config, changed, load_config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.scored_groups import ScoredGroup, score_groups
from dmoerm.io.paths import write_file
from dmoerm.model.heads import Head
from dmoerm.training import train
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.exact_solver import FOLDS, STRENGTHS, fit_heads, linear_pairs, solve
from dmoerm.training.losses import preference_losses
from evidence import measure
from evidence.single_models import Examples, prepared, right_shares

ARRIVALS = (
    "topical_chat.jsonl",
    "cragc_pairs.jsonl",
    "sfres.jsonl,sfhot.jsonl,bagel.jsonl",
    "mrbench_v2.jsonl",
    "summeval.jsonl",
)
Row = dict[str, Any]
"""One arrival: seconds and method → task → accuracy."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="human", help="the settings; its files are replaced by the arrivals")
    parser.add_argument("--arrival", nargs="+", default=ARRIVALS, help="files of one arrival, separated by commas")
    parser.add_argument("--seed", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting")
    parser.add_argument("--name", default="", help="store the table as results/adding-NAME.json")
    parser.add_argument("--output", type=Path, default=Path("runs/adding"))
    options = parser.parse_args(arguments)
    arrivals = [arrival.split(",") for arrival in options.arrival]
    runs = []
    for seed in options.seed:
        settings = [f"seed={seed}", f"output={options.output}/seed{seed}", *options.set]
        runs.append(arrive(load_config(options.config, settings), arrivals))
    figures = summary(runs)
    Console().print(measure.table(figures))
    if options.name:
        command = f"python -m evidence.adding_tasks {' '.join(arguments or sys.argv[1:])}"
        title = f"Accuracy on the tasks that were there before, %, and seconds of an arrival ({len(runs)} seeds)"
        measure.write(f"adding-{options.name}", command, [], tables={title: figures})


def arrive(config: Config, arrivals: Sequence[Sequence[str]]) -> list[Row]:
    """Return one row per arrival."""
    file = Path(config.output) / "rows.json"
    if file.exists():
        return json.loads(file.read_text())
    rows: list[Row] = []
    before: dict[str, np.ndarray] = {}
    head: Head | None = None
    for number in range(1, len(arrivals) + 1):
        files = [name for arrival in arrivals[:number] for name in arrival]
        settings = {"data.files": files, "output": f"{config.output}/{number}"}
        row, before, head = _arrive(changed(config, settings), number, before, head)
        rows.append(row)
    write_file(file, json.dumps(rows) + "\n")
    return rows


def _arrive(
    config: Config, number: int, before: dict[str, np.ndarray], head: Head | None
) -> tuple[Row, dict[str, np.ndarray], Head]:
    """Add the last files' tasks to the models of the arrival before.

    Args:
        before: id of a test group → rewards by the model of its task, before this arrival.
        head: the head of the continued single model, or None before the first arrival.
    """
    folder = Path(config.output)
    old = _keep_steps(folder.with_name(str(number - 1)) / "steps", folder / "steps")
    started = time.monotonic()
    run = train(config, Console(quiet=True))
    seconds = {"dmoerm": time.monotonic() - started}
    data = load_splits(config)
    test = [group for group in data.test if group.pairs()]
    scored: list[ScoredGroup] = []
    for task in dict.fromkeys(group.task for group in test):  # so that passes hold the same groups at every arrival
        part = [group for group in test if group.task == task]
        scored += score_groups(
            run.model,
            part,
            cache=run.cache,
            scorers={"given": lambda batch: batch.by_task(batch.tasks, "reward")[None]},
        )
    given = {s.group.id: s.members["given"][0] for s in scored}
    changed_groups = [key for key, rewards in before.items() if not np.array_equal(rewards, given[key])]
    rewards = {"dmoerm": {s.group.id: s.rewards["dmoerm"] for s in scored}}
    single, examples, _, tested = prepared(changed(config, {"output": f"{config.output}/single"}))
    vectors = base_embeddings(single, single.model.general, [*examples, *tested])
    new = [e for e in examples if e.task not in old]
    retrained = copy.deepcopy(single.model.general.head)
    retrained.normalizer.fit(torch.cat([vectors[e.key] for e in examples]))
    started = time.monotonic()
    fit_heads([retrained], [None], examples, vectors, config.seed)
    seconds["retrained"] = time.monotonic() - started
    started = time.monotonic()
    continued = copy.deepcopy(retrained) if head is None else _continued(head, new, vectors, config.seed)
    seconds["continued"] = time.monotonic() - started
    for name, fitted in (("retrained", retrained), ("continued", continued)):
        with torch.no_grad():
            rewards[name] = {e.group.id: fitted(vectors[e.key]).numpy() for e in tested}
    accuracy = {}
    for name, each in rewards.items():
        shares = right_shares((group, each[group.id]) for group in test)
        accuracy[name] = {task: float(np.mean(list(prompts.values()))) for task, prompts in shares.items()}
    known = {"old": sorted(old), "seconds": seconds, "accuracy": accuracy, "changed": len(changed_groups)}
    return known, given, continued


def _keep_steps(earlier: Path, folder: Path) -> set[str]:
    """Copy the general model and the task models of the run before; return its tasks."""
    if not earlier.exists():
        return set()
    for phase in ("phase0", "phase1", "phase2", "phase3"):
        if not (folder / phase).exists():
            shutil.copytree(earlier / phase, folder / phase)
    shutil.copy(earlier.parent / "format_version", folder.parent)
    return {step.name for step in (earlier / "phase1").iterdir()}


@torch.no_grad()
def _continued(head: Head, examples: Examples, vectors: Mapping[str, Tensor], seed: int) -> Head:
    """Return the head after training on these examples, pulled toward its weights before."""
    scale = head.normalizer.scale
    (pairs,) = linear_pairs(examples, lambda e: vectors[e.key], scale, [None], seed)
    start = head.score.weight[0]
    required = (pairs.margin - pairs.margins(start))[:, None]
    inside = (pairs.fold[:, None] != torch.arange(FOLDS)).float()
    columns = torch.cat([inside, torch.ones(len(pairs.fold), 1)], 1) * pairs.weight[:, None]
    strengths = torch.tensor(STRENGTHS)
    found = solve(
        pairs.vectors,
        pairs.target,
        required.expand(-1, len(strengths) * (FOLDS + 1)),
        columns.repeat(1, len(strengths)),
        strengths.repeat_interleave(FOLDS + 1),
        pairs.ends,
    ).view(len(start), len(strengths), FOLDS + 1)
    losses = torch.zeros(len(strengths))
    for k in range(FOLDS):
        left = pairs.fold == k
        margins = pairs.margins(found[:, :, k])[left] - required[left]
        losses += (preference_losses(margins, pairs.target[left, None]) * pairs.weight[left, None]).sum(0)
    trained = copy.deepcopy(head)
    trained.score.weight.copy_((start + found[:, int(losses.argmin()), FOLDS])[None])
    return trained


# --- the table -----------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Sequence[Row]]) -> list[dict[str, str]]:
    """Return one row per arrival: the mean over seeds of the old tasks' accuracy before and after it, and seconds."""
    figures = []
    for number in range(1, len(runs[0])):
        first = runs[0][number]
        new = [task for task in first["accuracy"]["dmoerm"] if task not in first["old"]]
        row = {"arrival": str(number + 1), "task": ", ".join(new)}
        for method in ("dmoerm", "retrained", "continued"):
            then, now = (
                [rows[k]["accuracy"][method][task] for rows in runs for task in rows[number]["old"]]
                for k in (number - 1, number)
            )
            row[method] = f"{100 * np.mean(then):.1f} → {100 * np.mean(now):.1f}"
            row[f"{method}, s"] = f"{np.mean([rows[number]['seconds'][method] for rows in runs]):.0f}"
        row["changed groups"] = str(sum(rows[number]["changed"] for rows in runs))
        figures.append(row)
    return figures


if __name__ == "__main__":
    main()
