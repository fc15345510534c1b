"""Does an uncertainty know where the model is wrong, and which prompts are of a task that it has never seen?

Wrong pairs: the run of a config (heads fitted exactly, `l2: auto`) is trained, or resumed, and orders its held-out
pairs. The area under the ROC curve (AUROC) of "the pair is ordered wrongly" is measured for

    margin      −|reward difference|
    laplace     the standard deviation of the reward difference under the posterior of the heads' weights (last-layer
                Laplace approximation, arXiv 2402.13210, in closed form; the heads' posteriors are independent)
    both        −|reward difference| / √(1 + π/8 · variance): the win probability that integrates the posterior (MacKay)
    folds       the same with the jackknife variance of the weights fitted without one fold each
    spread      the spread of a response's capability scores (`Score.uncertainty`), summed over the pair

0.5 is chance. Values are means over tasks of AUROCs over the pairs of all seeds, weighted so that a group counts once.

Unseen tasks: for each task, the router is trained without it; AUROC of that task's prompts against held-out prompts of
the others, by the entropy of the router's probabilities.

python benchmarks/uncertainty.py human --seed 10 11 12 --json uncertainty.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from dmoerm.training.batches import PreferenceExample, labeled
from dmoerm.training.linear_heads import LinearPairs, linear_pairs
from dmoerm.training.progress import Progress
from dmoerm.training.router_step import train_router
from dmoerm.training.run import examples_of, prepare, split_examples
from dmoerm.training.steps import step_name

MEASURES = ("margin", "laplace", "both", "folds", "spread")
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
    console.print(_table("unseen tasks, AUROC", {task: {"entropy": v} for task, v in unseen.items()}))
    if options.json is not None:
        document = {"schema": 1, "seeds": options.seed, "wrong_pairs": wrong, "unseen_tasks": unseen}
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
    parts = split_examples(run, data.train)[0]
    test = examples_of(run, [group for group in data.test if group.pairs()])
    run.cache.fill([e.encoded for e in test])
    return [
        row
        for task in data.taxonomy.tasks
        for row in _task_rows(run, task, [e for e in parts if e.task == task], [e for e in test if e.task == task])
    ]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Gaussian of a reward's weights (D,) on normalized embeddings: rest · I − Σ of low-rank parts, per head.

    Attributes:
        mean: (D,).
        folds: (K, D), the weights fitted without one fold each.
        parts: per head, coefficient², rest, basis (D, R), variance (R,).
    """

    mean: Tensor
    folds: Tensor
    parts: list[tuple[float, float, Tensor, Tensor]] = field(default_factory=list)

    def deviation(self, difference: Tensor) -> float:
        """Return the standard deviation of the reward difference."""
        total = 0.0
        for square, rest, basis, variance in self.parts:
            inside = (difference @ basis).square()
            total += square * float(rest * (difference.square().sum() - inside.sum()) + (variance * inside).sum())
        return max(total, 0.0) ** 0.5

    def jackknife(self, difference: Tensor) -> float:
        """Return the jackknife's standard deviation of the reward difference."""
        rewards = self.folds @ difference
        return float(((len(rewards) - 1) / len(rewards) * (rewards - rewards.mean()).square().sum()).sqrt())


def _task_rows(run: Run, task: str, examples: Examples, test: Examples) -> list[Row]:
    model = run.model.task_model(task)
    vectors = {e.key: run.cache.embeddings(e.encoded).float() for e in (*examples, *test)}
    posterior = _posterior(run, task, examples, vectors)
    scale = model.base.head.normalizer.scale
    rows = []
    for e in test:
        z = vectors[e.key]
        scores = torch.stack([head(z) for head in model.experts.heads], 1) if len(model.experts) else z[:, :0]
        spread = model.normalizer(scores).std(-1, correction=0) if len(model.experts) else z.new_zeros(len(z))
        pairs = e.group.pairs()  # without the label noise of the settings
        for pair in pairs:
            difference = (z[pair.better] - z[pair.worse]) / scale
            row = {"task": task, "weight": 1 / len(pairs), "margin": float(difference @ posterior.mean)}
            row |= {"laplace": posterior.deviation(difference), "folds": posterior.jackknife(difference)}
            rows.append(row | {"spread": float(spread[pair.better] + spread[pair.worse])})
    return rows


def _posterior(run: Run, task: str, examples: Examples, vectors: Mapping[str, Tensor]) -> Posterior:
    """Return the posterior of a task's calibrated reward from those of its heads, on the embeddings they share."""
    model, linear = run.model.task_model(task), run.model.task_model(task).aggregator.linear
    assert linear is not None
    calibration, scale = model.calibration, model.base.head.normalizer.scale
    coefficients = linear.weight / linear.normalizer.scale / (calibration.scale * calibration.temperature)
    capabilities = list(model.experts.capabilities)
    labels: list[str | None] = [*capabilities, *(None for _ in model.aggregator.base_names)]
    pairs = dict(zip([None, *capabilities], _pairs(run, examples, vectors, scale, capabilities), strict=True))
    mean, folds, parts = 0, 0, []
    for coefficient, (head, fold_weights, l2), label in zip(coefficients, _heads(run, task), labels, strict=True):
        ratio = scale / head.normalizer.scale
        weight = head.score.weight[0] * ratio
        mean, folds = mean + coefficient * weight, folds + coefficient * fold_weights * ratio
        parts.append((float(coefficient) ** 2, *_laplace(pairs[label], weight, l2)))
    return Posterior(mean, folds, parts)  # pyright: ignore[reportArgumentType]


def _pairs(
    run: Run, examples: Examples, vectors: Mapping[str, Tensor], scale: Tensor, capabilities: Sequence[str]
) -> list[LinearPairs]:
    names = [None, *capabilities]
    return linear_pairs(labeled(examples, names), lambda e: vectors[e.key], scale, names, run.config.seed)


def _heads(run: Run, task: str) -> list[tuple[Head, Tensor, float]]:
    """Return head, weights by fold and strength of each score that the aggregator reads."""
    model, metrics = run.model.task_model(task), run.metrics()
    states = {name: load_file(run.folder / "steps" / name / "state.safetensors") for name in metrics}
    first, second = step_name("phase1", task), step_name("phase2", task)
    heads = [
        (head, states[second][f"{folder_name(name)}_folds"], metrics[second][f"l2/{name}"])
        for name, head in zip(model.experts.capabilities, model.experts.heads, strict=True)
    ]
    base: dict[str, Any] = {
        "per_task": (model.base.head, states[first].get("head_folds"), metrics[first]["l2"]),
        "general": (run.model.general.head, states["phase0"]["head_folds"], metrics["phase0"]["l2"]),
        "all_labels": (model.all_labels, states[first].get("all_labels_folds"), metrics[first].get("l2/all_labels")),
    }
    return [*heads, *(base[name] for name in model.aggregator.base_names)]  # pyright: ignore[reportReturnType]


def _laplace(pairs: LinearPairs, weight: Tensor, l2: float) -> tuple[float, Tensor, Tensor]:
    """Return the inverse Hessian of n · (mean loss + l2/2 · |w|²) as rest, basis (D, R) and variance (R,).

    n is the number of groups; in the basis of the loss's curvature, the inverse is diagonal.
    """
    groups = float(pairs.weight.sum())
    if not groups:
        return 1 / l2, weight.new_zeros(len(weight), 0), weight.new_zeros(0)
    probability = torch.sigmoid(pairs.differences @ weight - pairs.margin)
    curvature = pairs.weight / groups * probability * (1 - probability)
    _, values, basis = torch.linalg.svd(pairs.differences * curvature.sqrt()[:, None], full_matrices=False)
    return 1 / (groups * l2), basis.T, 1 / (groups * (values.square() + l2))


# --- unseen tasks --------------------------------------------------------------------------------------------------


def unseen_tasks(config: Config) -> dict[str, float]:
    """Return task (and `mean`) → AUROC of its prompts by the entropy of a router that was trained without it."""
    data = load_splits(config)
    results: dict[str, float] = {}
    for left_out in data.taxonomy.tasks:
        tasks = {name: task for name, task in data.taxonomy.tasks.items() if name != left_out}
        taxonomy = data.taxonomy.model_copy(update={"tasks": tasks})
        folder = Path(config.output) / "unseen" / folder_name(left_out)
        run = prepare(config, taxonomy, folder, Progress(Console(quiet=True)))
        parts = split_examples(run, [group for group in data.train if group.task != left_out])
        test = examples_of(run, data.test)
        run.cache.fill([e.encoded for part in (*parts, test) for e in part])
        train_router(run, *parts)
        prompts = list({(e.task, e.prompt): e for e in test}.values())
        with torch.no_grad():
            route = run.model.router.probabilities(torch.stack([run.cache.prompt(e.encoded) for e in prompts]))
        entropy = -(route * route.clamp(min=1e-12).log()).sum(-1).double().numpy()
        positive = np.array([e.task == left_out for e in prompts])
        results[left_out] = auroc(positive, entropy, np.ones(len(prompts)))
    return results | {"mean": float(np.mean(list(results.values())))}


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("task", title=title, title_justify="left")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for task, row in rows.items():
        table.add_row(task, *(f"{value:.3f}" for value in row.values()))
    return table


if __name__ == "__main__":
    main()
