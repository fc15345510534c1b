"""The settings that ablations change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import make_tiny_config, tiny_groups, train_quietly, write_groups

from dmoerm.config import changed, load_config
from dmoerm.data.splits import MERGED, load_splits
from dmoerm.experiments.methods.registry import ablation_methods


def test_merged_tasks_are_one_with_all_capabilities(tiny_backbone, tmp_path) -> None:
    config = make_tiny_config(tiny_backbone, tmp_path, base="frozen", phase2={"lora": {"rank": 0}})
    apart = load_splits(config)
    config = config.model_copy(update={"data": config.data.model_copy(update={"merge_tasks": True})})
    data = load_splits(config)
    assert list(data.taxonomy.tasks) == [MERGED]
    names = {f"{task}_{c}" for task, found in apart.taxonomy.tasks.items() for c in found.capabilities}
    assert set(data.taxonomy.tasks[MERGED].capabilities) == names
    assert [group.id for group in data.test] == [group.id for group in apart.test]
    run = train_quietly(config)
    assert set(run.model.config.tasks) == {MERGED}


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_capabilities_are_fewer_experts(tiny_backbone, tmp_path, count) -> None:
    config = make_tiny_config(tiny_backbone, tmp_path, base="frozen", phase2={"lora": {"rank": 0}})
    data = config.data.model_copy(update={"max_capabilities": count})
    run = train_quietly(config.model_copy(update={"data": data}))
    assert all(len(names) == count for names in run.model.config.tasks.values())


def test_base_scores_can_be_left_out(tiny_backbone, tmp_path) -> None:
    phases = {"phase1": {"phase1_fraction": 0}, "phase3": {"inputs": "scores", "base_scores": ["general"]}}
    config = make_tiny_config(tiny_backbone, tmp_path, base="frozen", phase2={"lora": {"rank": 0}}, **phases)
    run = train_quietly(config)
    task_model = run.model.task_model(next(iter(run.model.config.tasks)))
    vectors = torch.randn(5, sum(task_model.aggregator.split))
    other = vectors.clone()
    other[:, -2] += 3  # phase 1's score
    assert torch.equal(task_model.aggregator(vectors), task_model.aggregator(other))
    other[:, -1] += 3
    assert not torch.equal(task_model.aggregator(vectors), task_model.aggregator(other))


def test_derived_scores_take_all_capabilities_however_few_have_experts(tiny_backbone, tmp_path) -> None:
    groups = [group.model_copy(update={"scores": None}) for group in tiny_groups()]
    data = {"files": [write_groups(groups, tmp_path / "graded.jsonl")]}
    config = make_tiny_config(tiny_backbone, tmp_path, data=data)
    whole, none = load_splits(config), load_splits(changed(config, {"data.max_capabilities": 0}))
    assert [group.scores for group in [*whole.train, *whole.test]] == [g.scores for g in [*none.train, *none.test]]
    assert all(group.scores_derived and not group.capabilities for group in [*none.train, *none.test])


@pytest.mark.parametrize("name", ["no_phase1", "no_phase0"])
def test_a_run_that_reads_no_scores_has_no_ablation_of_scores(name) -> None:
    context: Any = SimpleNamespace(run=SimpleNamespace(config=load_config("paper")))
    train: Any = ablation_methods()[name].train
    assert train(context) is None
