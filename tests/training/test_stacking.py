"""Experts side by side: some of them alone are what they are among all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import make_model, make_tiny_config

from dmoerm.config import HeadConfig, LoRAConfig
from dmoerm.model.experts import lora_layers, with_experts
from dmoerm.model.packing import pack
from dmoerm.schema import Pair
from dmoerm.training.batches import PackedCollator
from dmoerm.training.losses import PreferenceLossModule
from dmoerm.training.stacking import ExpertStack, HeadStack

from .made import features as read
from .made import made

NAMES = ("a", "b", "c")


def stack(tiny_backbone: str, tmp_path: Any) -> ExpertStack:
    model = make_model(make_tiny_config(tiny_backbone, tmp_path))
    base = next(iter(model.tasks.values())).base
    branch = with_experts(base.branch, len(NAMES), LoRAConfig(rank=2, dropout=0.0))
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(branch).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator)
    torch.manual_seed(0)
    for_all = HeadStack(
        [type(base.head)(model.config.width, HeadConfig()).requires_grad_(True) for _ in range(len(NAMES))]
    )
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


def test_parts_by_experts_have_the_gradients_of_one_pass(tiny_backbone: str, tmp_path: Any) -> None:
    """Groups that other capabilities label, in one pass of all experts and in parts of those that are wanted."""
    experts = stack(tiny_backbone, tmp_path)
    width = experts.branch.config.hidden_size
    labels = ["abc", "b", "ac", "b"]
    examples = [made(features(width, i), {name: [Pair(0, 1)] for name in names}) for i, names in enumerate(labels)]
    parts = PackedCollator(read, NAMES)(examples)
    assert sorted(part.active.tolist() for part in parts) == [[0, 1, 2], [0, 2], [1]]
    model = PreferenceLossModule(experts, num_experts=len(NAMES))
    found = []
    for everyone in (False, True):
        model.zero_grad()
        for part in parts:
            model(replace(part, active=None) if everyone else part).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_a_part_keeps_to_the_budget() -> None:
    both = {"a": [Pair(0, 1)], "b": [Pair(0, 1)]}
    examples = [made(features(8, i), both) for i in range(5)]  # 12 tokens, 2 experts
    for budget, count in ((1, 5), (24, 5), (48, 3), (1000, 1)):
        parts = PackedCollator(read, ("a", "b"), budget)(examples)
        assert len(parts) == count
        assert sum(part.share for part in parts) == pytest.approx(1)
        assert all(part.total.tolist() == [5, 5] for part in parts)
