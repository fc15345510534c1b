"""Does an uncertainty know where the model is wrong, and which prompts are of a task that it has never seen?

Wrong pairs: the run of a config (heads fitted exactly, `fit: exact`) is trained, or resumed, and orders its held-out
pairs. The area under the ROC curve (AUROC) of "the pair is ordered wrongly" is measured for

    margin      −|reward difference|
    laplace     the standard deviation of the reward difference under the posterior of the heads (`TaskModel.posterior`)
    both        −|reward difference| / √(1 + π/8 · variance): the win probability that integrates the posterior (MacKay)
    folds       the same with the jackknife variance of the weights fitted without one fold each
    spread      the spread of a response's capability scores, summed over the pair

0.5 is chance. Values are means over tasks of AUROCs over the pairs of all seeds, weighted so that a group counts once.

Unseen tasks: for each task, a model is trained without it; AUROC of that task's prompts against held-out prompts of the
others, by

    entropy      of the router's probabilities
    uncertainty  the mean over the prompt's responses of their uncertainty under the most probable task

python -m evidence.uncertainty human --seed 10 11 12 --json uncertainty.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from scipy.stats import rankdata
from torch import Tensor

from dmoerm.config import Config, changed, load_config
from dmoerm.data.splits import load_splits
from dmoerm.io.paths import write_file
from dmoerm.model.heads import Head
from dmoerm.names import folder_name
from dmoerm.training import Run, train
from dmoerm.training.batches import PreferenceExample
from dmoerm.training.examples import examples_of
from dmoerm.training.progress import Progress
from dmoerm.training.run import graph, prepare, run_steps
from dmoerm.training.steps import step_name

MEASURES = ("margin", "laplace", "both", "folds", "spread")
UNSEEN_MEASURES = ("entropy", "uncertainty")
Examples = Sequence[PreferenceExample]
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train or resume the runs, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, or the name of a shipped config such as human")
    parser.add_argument("--seed", nargs="+", type=int, default=[10])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args(arguments)
    configs = [load_config(options.config, [*options.set, f"seed={seed}"]) for seed in options.seed]
    configs = [changed(c, {"output": f"{c.output}/uncertainty-seed{c.seed}"}) for c in configs]
    wrong, unseen = wrong_pairs([row for config in configs for row in pair_rows(config)]), unseen_tasks(configs[0])
    console = Console()
    console.print(_table("wrong pairs, AUROC", wrong))
    console.print(_table("unseen tasks, AUROC", unseen))
    if options.json is not None:
        document = {"schema": 2, "seeds": options.seed, "wrong_pairs": wrong, "unseen_tasks": unseen}
        write_file(options.json, json.dumps(document, indent=1) + "\n")


def auroc(positive: np.ndarray, value: np.ndarray, weight: np.ndarray) -> float:
    """Return the probability that a positive has a higher value than a negative; a tie counts half.

    SciPy's Mann–Whitney statistic has no weights.
    """
    order = np.argsort(value, kind="stable")
    rank = rankdata(value, "dense")[order].astype(int) - 1
    up, down = (np.bincount(rank, (weight * kind)[order]) for kind in (positive, ~positive))
    below = np.concatenate([[0], down.cumsum()[:-1]]) + down / 2
    return float((up * below).sum() / max(up.sum() * down.sum(), 1e-300))


# --- wrong pairs ---------------------------------------------------------------------------------------------------


def wrong_pairs(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return task (and `mean`) → measure → AUROC."""
    tasks: dict[str, dict[str, float]] = {}
    for task in sorted({row["task"] for row in rows}):
        some = [row for row in rows if row["task"] == task]
        wrong, weight = np.array([row["margin"] < 0 for row in some]), np.array([row["weight"] for row in some])
        margin = np.abs([row["margin"] for row in some])
        columns = {name: np.array([row[name] for row in some]) for name in ("laplace", "folds", "spread")}
        values = {"margin": -margin, "laplace": columns["laplace"], "spread": columns["spread"]}
        for name, variance in (("both", columns["laplace"] ** 2), ("folds", columns["folds"] ** 2)):
            values[name] = -margin / np.sqrt(1 + np.pi / 8 * variance)
        tasks[task] = {name: auroc(wrong, values[name], weight) for name in MEASURES}
    return tasks | {"mean": {name: float(np.mean([row[name] for row in tasks.values()])) for name in MEASURES}}


def pair_rows(config: Config) -> list[Row]:
    """Return one row per held-out pair of the run: task, weight, margin and the standard deviations."""
    run, data = train(config), load_splits(config)
    test = examples_of(run, [group for group in data.test if group.pairs()])
    run.cache.fill([e.encoded for e in test])
    return [row for task in data.taxonomy.tasks for row in _task_rows(run, task, [e for e in test if e.task == task])]


def _task_rows(run: Run, task: str, test: Examples) -> list[Row]:
    model = run.model.task_model(task)
    vectors = {e.key: run.cache.embeddings(e.encoded).float() for e in test}
    mean, folds = _weights(run, task)
    normalizer, temperature = model.base.head.normalizer, float(model.calibration.temperature)
    rows = []
    for e in test:
        z = vectors[e.key]
        scores = torch.stack([head(z) for head in model.experts.heads], 1) if len(model.experts) else z[:, :0]
        spread = model.normalizer(scores).std(-1, correction=0) if len(model.experts) else z.new_zeros(len(z))
        pairs = e.group.pairs()  # without the label noise of the settings
        for pair in pairs:
            difference = (z[pair.better] - z[pair.worse]) / normalizer.scale
            row = {"task": task, "weight": 1 / len(pairs), "margin": float(difference @ mean)}
            row["laplace"] = float(model.posterior.deviation(difference)) / temperature
            row["folds"] = jackknife(folds @ difference)
            rows.append(row | {"spread": float(spread[pair.better] + spread[pair.worse])})
    return rows


def jackknife(rewards: Tensor) -> float:
    """Return the jackknife's standard deviation of reward differences (K,) by the weights without one fold each."""
    return float(((len(rewards) - 1) / len(rewards) * (rewards - rewards.mean()).square().sum()).sqrt())


def _weights(run: Run, task: str) -> tuple[Tensor, Tensor]:
    """Return the weights (D,) of a task's log-odds on normalized embeddings, and those fitted without a fold (K, D)."""
    model, linear = run.model.task_model(task), run.model.task_model(task).aggregator.linear
    assert linear is not None
    calibration, scale = model.calibration, model.base.head.normalizer.scale
    coefficients = linear.weight / linear.normalizer.scale / (calibration.scale * calibration.temperature)
    mean, folds = torch.zeros_like(scale), torch.zeros(1)
    for coefficient, (head, fold_weights) in zip(coefficients, _heads(run, task), strict=True):
        ratio = coefficient * scale / head.normalizer.scale
        mean, folds = mean + head.score.weight[0] * ratio, folds + fold_weights * ratio
    return mean, folds


def _heads(run: Run, task: str) -> list[tuple[Head, Tensor]]:
    """Return head and weights by fold of each score that the aggregator reads."""
    model = run.model.task_model(task)
    states = {name: load_file(run.folder / "steps" / name / "state.safetensors") for name in run.metrics()}
    first, second = step_name("phase1", task), step_name("phase2", task)
    heads = [
        (head, states[second][f"{folder_name(name)}_folds"])
        for name, head in zip(model.experts.capabilities, model.experts.heads, strict=True)
    ]
    base: dict[str, Any] = {
        "per_task": (model.base.head, states[first].get("head_folds")),
        "general": (run.model.general.head, states["phase0"]["head_folds"]),
        "all_labels": (model.all_labels, states[first].get("all_labels_folds")),
    }
    return [*heads, *(base[name] for name in model.aggregator.base_names)]  # pyright: ignore[reportReturnType]


# --- unseen tasks --------------------------------------------------------------------------------------------------


def unseen_tasks(config: Config) -> dict[str, dict[str, float]]:
    """Return task (and `mean`) → measure → AUROC of its prompts by a model that was trained without it."""
    data = load_splits(config)
    results: dict[str, dict[str, float]] = {}
    for left_out in data.taxonomy.tasks:
        tasks = {name: task for name, task in data.taxonomy.tasks.items() if name != left_out}
        taxonomy = data.taxonomy.model_copy(update={"tasks": tasks})
        known = [group for group in data.train if group.task != left_out]
        seen = replace(data, taxonomy=taxonomy, train=known)
        folder = Path(config.output) / "unseen" / folder_name(left_out)
        run = prepare(config, taxonomy, folder, Progress(Console(quiet=True)))
        run_steps(run, seen, graph(config, taxonomy))
        test = examples_of(run, data.test)
        run.cache.fill([e.encoded for e in test])
        prompts = list({(e.task, e.prompt): e for e in test}.values())
        columns = np.array([_prompt_measures(run, e) for e in prompts]).T
        positive, weight = np.array([e.task == left_out for e in prompts]), np.ones(len(prompts))
        rows = zip(UNSEEN_MEASURES, columns, strict=True)
        results[left_out] = {name: auroc(positive, values, weight) for name, values in rows}
    means = {name: float(np.mean([row[name] for row in results.values()])) for name in UNSEEN_MEASURES}
    return results | {"mean": means}


@torch.no_grad()
def _prompt_measures(run: Run, example: PreferenceExample) -> tuple[float, float]:
    """Return the entropy of a prompt's route, and its responses' mean uncertainty under the most probable task."""
    route = run.model.router.probabilities(run.cache.prompt(example.encoded)[None])[0]
    model = run.model.task_model(run.model.router.tasks[int(route.argmax())])
    x = model.base.head.normalizer(run.cache.embeddings(example.encoded).float())
    entropy = -(route * route.clamp(min=1e-12).log()).sum()
    return float(entropy), float(model.posterior.deviation(x).mean())


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("task", title=title, title_justify="left")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for task, row in rows.items():
        table.add_row(task, *(f"{value:.3f}" for value in row.values()))
    return table


if __name__ == "__main__":
    main()
