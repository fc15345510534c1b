"""A step of each recipe on a simulated second device: no operation mixes devices, and the host never waits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_device import reference_kernel, to_device, using_device
from tiny import make_model, make_tiny_config
from torch import Tensor, nn

from dmoerm.config import HeadConfig, LoRAConfig
from dmoerm.model import flex_attention
from dmoerm.model.experts import lora_layers, with_experts
from dmoerm.model.heads import Head
from dmoerm.model.packed_attention import FORM_VARIABLE
from dmoerm.schema import Pair
from dmoerm.training.batches import PackedCollator, PreferenceBatch, VectorCollator
from dmoerm.training.losses import PreferenceLossModule
from dmoerm.training.stacking import ExpertStack, HeadStack
from dmoerm.training.tracking import BestTracker
from dmoerm.training.trainer import _optimizer

from .made import features as read
from .made import made

NAMES = ("a", "b", "c")
LABELS = ("abc", "b", "ac", "b")  # the capabilities that label each of four groups
WIDTH = 32


def random(*shapes: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def heads() -> HeadStack:
    torch.manual_seed(0)
    return HeadStack([Head(WIDTH, HeadConfig()) for _ in NAMES])


def heads_step(_: Any) -> tuple[nn.Module, list[PreferenceBatch]]:
    examples = [
        made(random((2, WIDTH), seed=i)[0], {name: [Pair(0, 1)] for name in names}) for i, names in enumerate(LABELS)
    ]
    return PreferenceLossModule(heads(), num_experts=len(NAMES)), VectorCollator(read, NAMES)(examples)


def packed(i: int) -> tuple[Tensor, list[Tensor]]:
    prompt, *responses = random((4, WIDTH), (3, WIDTH), (5, WIDTH), seed=i)
    return prompt, responses


def lora_step(model: Any) -> tuple[nn.Module, list[PreferenceBatch]]:
    torch.manual_seed(0)
    branch = with_experts(next(iter(model.tasks.values())).base.branch, len(NAMES), LoRAConfig(rank=2, dropout=0.0))
    for layer in lora_layers(branch).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    examples = [made(packed(i), {name: [Pair(0, 1)] for name in names}) for i, names in enumerate(LABELS)]
    module = PreferenceLossModule(ExpertStack(branch, heads(), "last"), num_experts=len(NAMES))
    return module, PackedCollator(read, NAMES)(examples)


def full_step(model: Any) -> tuple[nn.Module, list[PreferenceBatch]]:
    scorer = model.general
    scorer.branch.float()
    scorer.requires_grad_(True)
    examples = [made(packed(i), [Pair(0, 1)]) for i in range(len(LABELS))]
    return PreferenceLossModule(scorer), PackedCollator(read)(examples)


def step(module: nn.Module, parts: Sequence[PreferenceBatch], settings: Any) -> tuple[list[Tensor], ...]:
    """Return the parts' losses, the gradients, and the trained weights after a step."""
    tracker = BestTracker(module, settings)
    optimizer = _optimizer(tracker, settings)
    losses = []
    for part in parts:
        loss = tracker(part).loss
        loss.backward()
        losses.append(loss.detach())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for _, p in tracker.trained()]
    optimizer.step()
    return losses, gradients, [p.detach() for _, p in tracker.trained()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", [heads_step, lora_step, full_step], ids=["heads", "lora", "full"])
def test_a_step_never_waits(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Any, dtype: str
) -> None:
    monkeypatch.setenv(FORM_VARIABLE, "flex")
    monkeypatch.setattr(flex_attention, "_kernel", lambda _: reference_kernel)
    config = make_tiny_config(tiny_backbone, tmp_path, backbone={"dtype": dtype}, phase2={"learning_rate": 0.1})
    module, parts = recipe(make_model(config))
    original = copy.deepcopy(module)
    losses, gradients, weights = step(copy.deepcopy(module), parts, config.phase2)
    with using_device() as traffic:
        to_device(module)
        moved = [part.to("sim:0") for part in parts]
        assert len(traffic.uploads) <= 4 * len(parts), traffic.uploads  # features, indices of tokens, integers, floats
        assert traffic.waits == []
        on_device = step(module, moved, config.phase2)
        assert traffic.waits == []
        device_losses, device_gradients, device_weights = ([x.cpu() for x in each] for each in on_device)
    tolerance = 1e-4 if dtype == "float32" else 0.05
    torch.testing.assert_close(device_losses, losses, atol=tolerance, rtol=tolerance)
    assert any(not torch.equal(p, q) for p, q in zip(device_weights, original.parameters(), strict=False))
    if dtype == "float32":
        torch.testing.assert_close(device_gradients, gradients, atol=1e-6, rtol=1e-3)
        for found, expected, gradient in zip(device_weights, weights, gradients, strict=True):
            known = (
                gradient.abs() > 1e-4 * gradient.abs().max()
            )  # AdamW divides by it: rounding decides the others' step
            torch.testing.assert_close(found[known], expected[known], atol=1e-3, rtol=1e-3)
