"""Tasks whose weights are read on demand score as those in memory, and only some are held."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model, make_tiny_config

from dmoerm.errors import CheckpointError, ConfigError
from dmoerm.model import DMoERM
from dmoerm.model.experts import lora_layers
from dmoerm.schema import Query

RESPONSES = ("Fine, and you?", "No.")


def saved(backbone: str, folder: Path, **settings: Any) -> Path:
    make_model(make_tiny_config(backbone, folder, **settings)).save_pretrained(folder / "model")
    return folder / "model"


def in_memory(model: DMoERM, task: str) -> bool:
    """Whether a task has its weights; all of them or none."""
    task_model = model.task_model(task)
    lora = [t for layer in lora_layers(task_model.experts.branch).values() for t in (layer.lora_A, layer.lora_B)]
    own = [] if model.config.shared_branch else list(task_model.base.branch.parameters())
    states = {weight.is_meta for weight in (*lora, *own)}
    assert len(states) == 1
    return not states.pop()


@pytest.mark.parametrize("base", ["full", "frozen"])
def test_tasks_on_demand_score_as_those_in_memory(tiny_backbone: str, tmp_path: Path, base: str) -> None:
    folder = saved(tiny_backbone, tmp_path, base=base)
    whole, part = DMoERM.from_pretrained(folder), DMoERM.from_pretrained(folder, max_tasks=1, device_map="cpu")
    tasks = list(whole.config.tasks)
    assert not any(in_memory(part, task) for task in tasks)
    for order in (tasks, tasks[::-1], [*tasks, None]):
        queries = [Query(prompt="How are you?", responses=RESPONSES, task=task) for task in order]
        assert list(part.score_queries(queries)) == list(whole.score_queries(queries))
        assert sum(in_memory(part, task) for task in tasks) == 1
    with pytest.raises(ConfigError, match="load it without max_tasks"):
        part.save_pretrained(tmp_path / "other")


def test_the_task_that_was_scored_least_recently_is_evicted(tiny_backbone: str, tmp_path: Path) -> None:
    model = DMoERM.from_pretrained(saved(tiny_backbone, tmp_path), max_tasks=2)
    read: list[str] = []
    weights: Any = model.task_weights
    weights._read, weights._release = read.append, lambda task: read.append(f"-{task}")
    for task in ("a", "b", "a", "c", "a", "b"):
        weights.require(task)
    assert read == ["a", "b", "-b", "c", "-c", "b"]
    assert weights.held == ["a", "b"]


def test_a_file_that_has_changed_is_not_read(tiny_backbone: str, tmp_path: Path) -> None:
    folder = saved(tiny_backbone, tmp_path)
    model = DMoERM.from_pretrained(folder, max_tasks=1)
    file = folder / "tasks" / "chitchat" / "branch.safetensors"
    os.utime(file, (1, 1))
    with pytest.raises(CheckpointError, match=r"branch.safetensors: changed since the model was loaded"):
        model.score("Hi", list(RESPONSES), task="chitchat")
    model.score("Hi", list(RESPONSES), task="objective_qa")


@pytest.mark.parametrize("limit", [0, True, "2"])
def test_a_limit_that_is_no_number_of_tasks_is_refused(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_tasks=.*use a number from 1 on"):
        DMoERM.from_pretrained(tmp_path, max_tasks=limit)
