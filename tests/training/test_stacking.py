"""Experts side by side: some of them alone are what they are among all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import make_model, make_tiny_config

from dmoerm.config import HeadConfig, LoRAConfig
from dmoerm.model.experts import lora_layers, with_experts
from dmoerm.model.packing import pack
from dmoerm.schema import Pair
from dmoerm.training.batches import Item, collate_parts
from dmoerm.training.learner import PhaseModel
from dmoerm.training.stacking import ExpertStack, HeadStack

LANES = 3


def stack(tiny_backbone: str, tmp_path: Any) -> ExpertStack:
    model = make_model(make_tiny_config(tiny_backbone, tmp_path))
    base = next(iter(model.tasks.values())).base
    branch = with_experts(base.branch, LANES, LoRAConfig(rank=2, dropout=0.0))
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(branch).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator)
    torch.manual_seed(0)
    for_all = HeadStack([type(base.head)(model.config.width, HeadConfig()).requires_grad_(True) for _ in range(LANES)])
    return ExpertStack(branch, for_all, base.pooling)


def features(width: int, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, width, generator=generator), [torch.randn(n, width, generator=generator) for n in (3, 5)]


def test_active_experts_score_as_among_all(tiny_backbone: str, tmp_path: Any) -> None:
    experts = stack(tiny_backbone, tmp_path)
    inputs = pack([features(experts.branch.config.hidden_size, 0)])
    whole = experts(inputs)
    assert len({round(float(score), 6) for score in whole.flatten()}) == whole.numel()
    for active in ([0], [2], [0, 2], [0, 1, 2]):
        torch.testing.assert_close(experts(inputs, torch.tensor(active)), whole[active])
    torch.testing.assert_close(experts(inputs), whole)


def test_parts_by_lanes_have_the_gradients_of_one_pass(tiny_backbone: str, tmp_path: Any) -> None:
    """Groups that other capabilities label, in one pass of all experts and in parts of those that are wanted."""
    experts = stack(tiny_backbone, tmp_path)
    width = experts.branch.config.hidden_size
    labels = [(0, 1, 2), (1,), (0, 2), (1,)]
    items = [Item(features(width, i), [Pair(0, 1)] * len(lanes), 0.0, lanes) for i, lanes in enumerate(labels)]
    parts = collate_parts(LANES)(items)["parts"]
    assert sorted(part["active"].tolist() for part in parts) == [[0, 1, 2], [0, 2], [1]]
    model = PhaseModel(experts, lanes=LANES)
    found = []
    for everyone in (False, True):
        model.zero_grad()
        for part in parts:
            (model(**{**part, "active": None} if everyone else part)["loss"]).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_a_part_keeps_to_the_budget() -> None:
    items = [Item(features(8, i), [Pair(0, 1)] * 2, 0.0, (0, 1)) for i in range(5)]  # 12 tokens, 2 lanes
    for budget, parts in ((1, 5), (24, 5), (48, 3), (1000, 1)):
        made = collate_parts(2, budget)(items)["parts"]
        assert len(made) == parts
        assert sum(float(part["share"]) for part in made) == pytest.approx(1)
        assert all(part["total"].tolist() == [5, 5] for part in made)
