"""A step of each recipe on a simulated second device: no operation mixes devices, and the host never waits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from running import in_short
from simulated_device import reference_kernel, to_device, using_device
from tiny import make_model, make_tiny_config, write_backbone
from torch import Tensor, nn

from dmoerm.config import LoRAConfig
from dmoerm.model import flex_attention
from dmoerm.model.attention import FORM_VARIABLE
from dmoerm.model.experts import MergedLoRALinear, lora_layers, with_experts
from dmoerm.model.heads import Head
from dmoerm.model.layers import recompute_layers
from dmoerm.schema import Pair
from dmoerm.training.loop import BestTracker, make_optimizer
from dmoerm.training.losses import (
    ExpertStack,
    HeadStack,
    PackedCollator,
    PreferenceBatch,
    PreferenceLossModule,
    VectorCollator,
)
from dmoerm.training.router import RoutingBatch, RoutingLossModule, _collate

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
    return HeadStack([Head(WIDTH) for _ in NAMES])


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


def base_lora_step(model: Any) -> tuple[nn.Module, list[PreferenceBatch]]:
    torch.manual_seed(0)
    scorer = model.general
    scorer.branch = with_experts(scorer.branch, 1, LoRAConfig(rank=2, dropout=0.0), MergedLoRALinear)
    for layer in lora_layers(scorer.branch).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    scorer.head.requires_grad_(True)
    return PreferenceLossModule(scorer), PackedCollator(read)([made(packed(i), [Pair(0, 1)]) for i in range(4)])


def recomputed_step(model: Any) -> tuple[nn.Module, list[PreferenceBatch]]:
    module, parts = full_step(model)
    recompute_layers(model.general.branch)
    module.calls = []  # pyright: ignore[reportAttributeAccessIssue]
    model.general.branch.layers[0].mlp.register_forward_pre_hook(lambda *_: module.calls.append(1))  # pyright: ignore
    return module, parts


def offloaded_step(model: Any) -> tuple[nn.Module, list[PreferenceBatch]]:
    module, parts = full_step(model)
    recompute_layers(model.general.branch, offload=True)
    return module, parts


def fallback_step(model: Any) -> tuple[nn.Module, list[PreferenceBatch]]:
    """A backbone that runs by its own forward, on ids."""
    scorer = model.general
    scorer.branch.float()
    scorer.requires_grad_(True)
    examples = [
        made((torch.arange(i, i + 4), [torch.arange(3), torch.arange(i, i + 5)]), [Pair(0, 1)]) for i in range(4)
    ]
    return PreferenceLossModule(scorer), PackedCollator(read)(examples)


def aggregator_step(model: Any) -> tuple[nn.Module, list[PreferenceBatch]]:
    task_model = next(iter(model.tasks.values()))
    task_model.requires_grad_(False)
    task_model.aggregator.requires_grad_(True)
    width = len(task_model.base.head.normalizer.mean)
    inputs = [random((2, width), (len(task_model.experts), 2, width), (2,), seed=i) for i in range(4)]
    vectors = [task_model.vectors(*each) for each in inputs]
    examples = [made(vector.detach(), [Pair(0, 1)]) for vector in vectors]
    return PreferenceLossModule(task_model.aggregator), VectorCollator(read)(examples)


def own_router_step(model: Any) -> tuple[nn.Module, list[RoutingBatch]]:
    router = model.router.requires_grad_(True)
    assert router.language_model is not None
    router.language_model.float()
    rows = [(torch.arange(3 + i), i % len(router.tasks), 0) for i in range(4)]
    return RoutingLossModule(router), _collate(rows)


def step(module: nn.Module, parts: Sequence[PreferenceBatch], settings: Any) -> tuple[list[Tensor], ...]:
    """Return the parts' losses, the gradients, and the trained weights after a step."""
    for layer in module.train().modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # the devices draw different numbers
    tracker = BestTracker(module, settings)
    optimizer = make_optimizer(tracker, settings)
    losses = []
    for part in parts:
        loss = module(part).loss
        loss.backward()
        losses.append(loss.detach())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for _, p in tracker.trained()]
    tracker.clip()
    optimizer.step()
    return losses, gradients, [p.detach() for _, p in tracker.trained()]


RECIPES = {
    "lora": lora_step,
    "full": full_step,
    "base lora": base_lora_step,
    "recomputed": recomputed_step,
    "offloaded": offloaded_step,
    "fallback": fallback_step,
    "aggregator": aggregator_step,
    "own router": own_router_step,
}


@pytest.mark.parametrize("dtype", in_short(["float32", "bfloat16"], "bfloat16"))
@pytest.mark.parametrize("kind", RECIPES)
def test_a_step_never_waits(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    monkeypatch.setenv(FORM_VARIABLE, "flex")
    monkeypatch.setattr(flex_attention, "_kernel", lambda _: reference_kernel)
    own = {"kind": "own"} if kind in ("fallback", "own router") else {}
    backbone: dict[str, Any] = {"dtype": dtype}
    if kind == "fallback":
        backbone |= {"path": write_backbone(tmp_path / "gpt2", "gpt2"), "branch_layer": 0}
    rate, experts = {"learning_rate": 0.1}, {"fit": "exact"} if kind == "fallback" else {}
    config = make_tiny_config(tiny_backbone, tmp_path, backbone=backbone, router=own, phase1=rate, phase2=experts)
    recipe = RECIPES[kind]
    module, parts = recipe(make_model(config))
    original = copy.deepcopy(module)
    losses, gradients, weights = step(copy.deepcopy(module), parts, config.phase1)
    with using_device() as traffic:
        to_device(module)
        moved = [part.to("sim:0") for part in parts]
        assert len(traffic.uploads) <= 4 * len(parts), traffic.uploads  # features, indices of tokens, integers, floats
        assert traffic.waits == []
        on_device = step(module, moved, config.phase1)
        if kind in ("fallback", "own router"):  # transformers' forward asks whether its mask has padding
            assert len(traffic.waits) <= 2 * len(parts), traffic.waits
        elif kind == "offloaded":  # the layers' inputs alone cross to the CPU, and come back
            away = [wait for wait in traffic.waits if wait.endswith("to the CPU")]
            assert len(away) > 1
            assert {wait.removeprefix("blocking ").split(" to ")[0] for wait in traffic.waits} == {
                wait.split(" to ")[0] for wait in away
            }
            assert all(f", {WIDTH}) to" in wait for wait in away)
            assert len(traffic.waits) == 2 * len(away)
        else:
            assert traffic.waits == []
        device_losses, device_gradients, device_weights = ([x.cpu() for x in each] for each in on_device)
    if kind == "recomputed":  # forward and backward pass, here and on the device
        assert len(module.calls) == 4 * len(parts)  # pyright: ignore
    tolerance = 1e-4 if dtype == "float32" else 0.05
    torch.testing.assert_close(device_losses, losses, atol=tolerance, rtol=tolerance)
    assert any(not torch.equal(p, q) for p, q in zip(device_weights, original.parameters(), strict=False))
    if dtype == "float32":
        torch.testing.assert_close(device_gradients, gradients, atol=1e-6, rtol=1e-3)
        for found, expected, gradient in zip(device_weights, weights, gradients, strict=True):
            # AdamW divides by the gradient: rounding decides the others' step, such as that of a bias, which cancels
            known = gradient.abs() > max(1e-4 * float(gradient.abs().max()), 1e-6)
            torch.testing.assert_close(found[known], expected[known], atol=1e-3, rtol=1e-3)
