"""Change a trained model without training: remove or export tasks, and merge the tasks of several models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import CheckpointError, ConfigError
from ..model import DMoERM
from ..model.checkpoint import check_same_general, check_same_trunk, digest
from ..model.configuration import ModelChange
from .growing import save_changed
from .router_row import DRAWS, fit_row, known_statistics, set_row


def remove_tasks(model: DMoERM, tasks: Sequence[str], target: Path) -> None:
    """Write the model without these tasks; all other weights stay as they are.

    Raises:
        DataError: the model lacks a task.
        ConfigError: no task would be left.
        CheckpointError: `target` cannot be written.
    """
    _keep(model, tasks, [task for task in model.config.tasks if task not in tasks])
    save_changed(model, target, [ModelChange(change="remove", task=task) for task in tasks])


def export_tasks(model: DMoERM, tasks: Sequence[str], target: Path) -> None:
    """Write a model with these tasks alone; raises as `remove_tasks`."""
    _keep(model, tasks, tasks)
    save_changed(model, target, [ModelChange(change="export", task=task) for task in tasks])


def _keep(model: DMoERM, named: Sequence[str], kept: Sequence[str]) -> None:
    for task in named:
        model.task_model(task, "--task")
    if not kept:
        raise ConfigError(f"--task: the model has only {', '.join(model.config.tasks)}; a model needs one task or more")
    model.keep_tasks(kept)


def merge_models(model: DMoERM, others: Sequence[tuple[str, DMoERM]], target: Path, name: str) -> list[str]:
    """Write the first model with the tasks of the others, whose weights are copied; return the tasks that joined it.

    The first model's general model, its calibrations and its rows of the router stay. Each new task's row is fitted
    against the statistics of the prompts of both models. A task that both have with the same weights is kept once.

    Args:
        others: name and model.
        name: of the first model, for messages.

    Raises:
        CheckpointError: a model has another trunk, another general model whose score a task reads, no statistics of its
            prompts, or another task of the same name; or `target` cannot be written.
    """
    changes: list[ModelChange] = []
    for other_name, other in others:
        check_same_trunk(model, other, (name, other_name))
        for task in other.config.tasks:
            if _is_new(model, other, task, other_name):
                check_same_general(model, other, task, other_name)
                _join(model, other, task, (name, other_name))
                earlier = [ModelChange(**change) for change in other.config.history if change["task"] == task]
                changes += [*earlier, ModelChange(change="merge", task=task, source=Path(other_name).name)]
        if model.training_prompts and other.training_prompts:
            model.training_prompts |= other.training_prompts
        else:
            model.training_prompts = None  # a part of the prompts is unknown
    save_changed(model, target, changes)
    return [change.task for change in changes if change.change == "merge"]


def _is_new(model: DMoERM, other: DMoERM, task: str, other_name: str) -> bool:
    if task not in model.config.tasks:
        return True
    if digest(model.task_model(task)) != digest(other.task_model(task)):
        hint = "export only the tasks that you want, or remove one of the two"
        raise CheckpointError(f"{other_name}: has another task {task!r} than the models before it; {hint}")
    return False


def _join(model: DMoERM, other: DMoERM, task: str, names: tuple[str, str]) -> None:
    known_statistics(model, names[0])
    statistics = known_statistics(other, names[1])
    task_model = other.task_model(task)
    if model.config.shared_branch:
        task_model.base.branch = model.general.branch  # equal weights: they are in memory once
    model.set_task(task, task_model)
    if task in other.routing.pooled:
        model.config.routing = {**model.config.routing, "pooled": [*model.routing.pooled, task]}
    seed = int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big")
    drawn = statistics.draw(task, DRAWS, torch.Generator().manual_seed(seed))
    set_row(model, task, fit_row(model, task, drawn, seed)[0], statistics.only([task]))
