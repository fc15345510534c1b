"""Update the tasks of a trained model with new labels; the old data are not needed.

    new groups of a task ─▶ its heads, each from its posterior (replay.py) ─▶ the posterior of its reward

Branch, aggregator, calibration and router stay, and so do the general model and all other tasks: their scores keep
every bit. Rewards on the new groups by heads that have not seen them show what the update gains.

Shapes: N responses of a group, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from ..config import Config
from ..data.splits import Splits, load_splits
from ..errors import CheckpointError, ConfigError, DataError
from ..model import DMoERM
from ..model.history import ModelChange, now
from ..model.prompt_statistics import PromptStatistics, TaskPrompts
from ..model.training_prompts import TrainingPrompts
from ..schema import Group
from .batches import PreferenceExample, labeled
from .embedding import base_embeddings, map_rows, task_vectors
from .examples import examples_of
from .growing import check_own_heads, read_general, save_changed
from .linear_heads import FOLDS, LinearFit, linear_pairs
from .posteriors import scored_heads, set_from_heads
from .progress import Progress
from .replay import fit_update, fit_update_all_labels
from .router_step import assign_tasks, prompt_features, prompt_vectors
from .run import open_cache, report_data
from .run_folder import data_digest
from .run_settings import changed_config, changed_settings, without_data
from .score_weights import out_of_fold_scores
from .steps import FoldWeights, Run, Training

Examples = Sequence[PreferenceExample]


@dataclass(frozen=True)
class TaskUpdate:
    """What an update did to one task.

    Attributes:
        groups: the new groups of the task.
        heads: names of the scores whose heads were updated: `per_task`, `all_labels` and capabilities.
        before: of each group, the rewards (N,) of the model before the update.
        after: the rewards (N,) by heads that were updated without the group's prompt.
    """

    groups: Sequence[Group]
    heads: Sequence[str]
    before: Sequence[Tensor]
    after: Sequence[Tensor]


@dataclass
class ModelUpdate:
    """An updated model that is not saved yet.

    Attributes:
        model: the updated model.
        tasks: task → what was done.
        unrouted: the number of groups that name no task and that the router assigns to none.
        changes: the entries of the model's history.
    """

    model: DMoERM
    tasks: dict[str, TaskUpdate]
    unrouted: int
    changes: list[ModelChange] = field(default_factory=list)

    def save(self, target: Path) -> None:
        """Write the updated model with its history, completely or not at all."""
        save_changed(self.model, target, self.changes)


def update_model(model: DMoERM, folder: Path, overrides: Sequence[str], console: Console | None = None) -> ModelUpdate:
    """Update the tasks of a model, in memory, with the groups that the overrides name.

    Args:
        model: is changed.
        folder: the model's folder.
        overrides: settings `a.b=value` that differ from the model's run.yaml; the data are not taken from there.

    Raises:
        ConfigError: the model's heads were not fitted exactly, or a setting would need another model.
        CheckpointError: the model has no posteriors of its heads or no run.yaml.
        DataError: the data are invalid, name a task that the model does not have, or have no label that it can use.
    """
    config = changed_config(folder, model, {**without_data(), "data.test_fraction": 0.0}, overrides)
    _check_updatable(model, folder, config)
    data = load_splits(config, model.config.tasks)
    for group in data.train:
        if group.task is not None:
            model.task_model(group.task, group.position)
    run = Run(config, model, open_cache(config, model), folder, Progress(console))
    report_data(run, data)
    if pooled := [task for task in model.routing.pooled if any(group.task == task for group in data.train)]:
        run.progress.say(
            f"the general model scores the prompts of {', '.join(pooled)}: the update changes their rewards only where "
            "the task is given"
        )
    training = _training(run, data)
    update = ModelUpdate(model, {}, sum(e.task is None for e in training.train))
    for task in model.config.tasks:
        if any(e.task == task for e in training.train) and (done := _update_task(training, task)):
            update.tasks[task] = done
    if not update.tasks:
        hint = "the groups need overall labels or labels of the task's capabilities"
        raise DataError("no group has a label that the model can learn from", field="scores", hint=hint)
    settings = changed_settings(folder, config)
    digest, time = data_digest(data), now()
    update.changes = [
        ModelChange(change="update", task=task, time=time, data=digest, settings=settings) for task in update.tasks
    ]
    prompts = TrainingPrompts.of(group.prompt for done in update.tasks.values() for group in done.groups)
    model.training_prompts = model.training_prompts and model.training_prompts | prompts
    return update


def _check_updatable(model: DMoERM, folder: Path, config: Config) -> None:
    steps = (config.phase0, config.phase1, config.phase2, config.phase3)
    if config.base != "frozen" or config.phase2.lora.rank or any(step.l2 != "auto" for step in steps):
        raise ConfigError(
            f"{folder}: its heads were not fitted exactly (base: frozen and l2: auto), so that they have no posterior; "
            "retrain its capabilities, or remove the task and add it again with all data"
        )
    check_own_heads(model, folder)
    if not model.head_posteriors:
        raise CheckpointError(f"{folder}: has no posteriors of its heads (head_posteriors.safetensors); train it again")


def _training(run: Run, data: Splits) -> Training:
    """Return the new groups as training examples, and what is known of the heads of the model."""
    examples = examples_of(run, data.train)
    with run.progress.step("trunk's activations"):
        run.cache.fill([e.encoded for e in examples], run.progress.count)
    training = Training(run, assign_tasks(run, examples), [])
    read_general(training)
    training.posteriors |= run.model.head_posteriors
    return training


@torch.no_grad()
def _update_task(training: Training, task: str) -> TaskUpdate | None:
    """Update a task's heads and the posterior of its reward; return None if no group has a label for them."""
    run, task_model = training.run, training.run.model.task_model(task)
    examples = [e for e in training.train if e.task == task]
    linear, calibration = task_model.aggregator.linear, task_model.calibration
    assert linear is not None
    vectors = task_vectors(run, task, examples)
    before = map_rows(lambda rows: calibration(linear(task_model.aggregator.scores(rows))), vectors, run)
    fits = _fit_heads(training, task, examples)
    if not fits:
        return None
    for head, key in scored_heads(training, task):
        if key[0] is None:
            continue
        if (fit := fits.get(key[1])) is None:
            weights = head.score.weight.detach().cpu().expand(FOLDS, -1)
            training.folds[key] = FoldWeights(weights, torch.tensor(torch.nan))
        else:
            head.score.weight.copy_(fit.weight[None])
            training.folds[key] = FoldWeights(fit.fold_weights, torch.tensor(fit.accuracy))
            assert fit.posterior is not None
            training.posteriors[key] = run.model.head_posteriors[key] = fit.posterior
    set_from_heads(training, task)
    _join_statistics(run, task, examples)
    after = map_rows(lambda rows: calibration(linear(rows)), out_of_fold_scores(training, task, examples), run)
    return TaskUpdate(
        [e.group for e in examples],
        list(fits),
        [before[e.key] for e in examples],
        [after[e.key] for e in examples],
    )


def _fit_heads(training: Training, task: str, examples: Examples) -> dict[str, LinearFit]:
    """Fit the task's heads for which there are labels and a posterior; return name of the score → fit."""
    run, task_model = training.run, training.run.model.task_model(task)
    capabilities = task_model.experts.capabilities
    names = (None, *capabilities)
    scale = task_model.base.head.normalizer.scale.cpu()  # equal in all heads of a task
    vectors = base_embeddings(run, task_model.base, labeled(examples, names))
    pairs = linear_pairs(labeled(examples, names), lambda e: vectors[e.key], scale, names, run.config.seed)
    by_name = {name: part for name, part in zip(("per_task", *capabilities), pairs, strict=True) if len(part.weight)}
    heads = {key[1]: head for head, key in scored_heads(training, task) if key[0] is not None}
    known = {name: training.posteriors[task, name] for name in heads if (task, name) in training.posteriors}
    weights = {name: heads[name].score.weight[0].cpu() for name in known}
    fits = {name: fit_update(by_name[name], weights[name], known[name]) for name in known if name in by_name}
    if "all_labels" in known and "per_task" in by_name:
        others = [by_name[name] for name in capabilities if name in by_name]
        start = weights["all_labels"], known["all_labels"]
        fits["all_labels"] = fit_update_all_labels(by_name["per_task"], others, *start)
    return fits


def _join_statistics(run: Run, task: str, examples: Examples) -> None:
    """Add the new prompts to the task's statistics, against which the rows of later tasks are fitted."""
    model = run.model
    if model.prompt_statistics is not None:
        vectors = prompt_vectors(model.router, prompt_features(run, examples))
        known = model.prompt_statistics.tasks
        model.prompt_statistics = PromptStatistics({**known, task: known[task].joined(TaskPrompts.of(vectors))})
