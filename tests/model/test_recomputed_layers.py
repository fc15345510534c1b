"""Layers that run again in the backward pass give the same gradients, and keep their inputs alone until then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import write_backbone
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dmoerm.config import LoRAConfig
from dmoerm.errors import BackboneError
from dmoerm.model.experts import MergedLoRALinear, lora_layers, with_experts
from dmoerm.model.layers import Decoder, recompute_layers, run, split_layers
from dmoerm.model.packing import Outputs, Packed, Packing

from .packing import example, random_ids
from .test_attention import OUTPUTS, WINDOWED, stacked_experts

Gradients = dict[str, Tensor]


def backward(part: Decoder, inputs: Packed, outputs: Outputs = "responses", k: int = 1) -> tuple[Gradients, int]:
    """Return the gradients of a pass by name, and the bytes that it keeps for them besides its weights."""
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {p.untyped_storage().data_ptr() for p in part.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    torch.manual_seed(0)  # of dropout
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run(part, inputs, outputs, k).float().sin().sum()
        size = sum(storage.nbytes() for storage in kept.values())
    named = {name: p for name, p in part.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)), size


def recomputed(part: Decoder, *, offload: bool = False) -> Decoder:
    """Return a copy whose layers run again."""
    part = copy.deepcopy(part)
    recompute_layers(part, offload=offload)
    return part


def assert_same_gradients(part: Decoder, inputs: Packed, outputs: Outputs = "responses", k: int = 1) -> None:
    expected, _ = backward(part, inputs, outputs, k)
    assert expected
    for offload in (False, True):
        found, _ = backward(recomputed(part, offload=offload), inputs, outputs, k)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt_oss"])
def test_gradients_of_a_branch_are_the_same(
    load: Callable[..., Decoder], tmp_path: Path, kind: str, outputs: Outputs
) -> None:
    """With windows by layer type, and with each form of last layer."""
    path = write_backbone(tmp_path / kind, kind, sliding_window=5, **WINDOWED.get(kind, {}))
    model = load(path=path).requires_grad_(True).train()
    assert_same_gradients(model, example(model), outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["experts", "merged"])
def test_gradients_of_lora_are_the_same(load: Callable[..., Decoder], form: str, dtype: torch.dtype) -> None:
    """With dropout; in bfloat16 the frozen weights have that dtype, and layers run under autocast."""
    trunk, branch = split_layers(load().to(dtype), 1)
    branch.config.dtype = dtype
    assert trunk is not None
    hidden = example(load())
    hidden = hidden._replace(tokens=run(trunk, hidden)[0])
    count = 3 if form == "experts" else 1
    if form == "experts":
        part = stacked_experts(branch, count)
    else:
        part = with_experts(branch, 1, LoRAConfig(rank=2), MergedLoRALinear)
    for layer in lora_layers(part).values():
        layer.dropout.p = 0.3
    assert_same_gradients(part.train(), hidden, k=count)


def test_a_backbone_that_runs_by_its_own_forward(load: Callable[..., Decoder]) -> None:
    model = load("gpt2").double().requires_grad_(True).train()  # its embeddings' gradient is a sum in another order
    assert_same_gradients(model, example(model))


def test_each_layer_keeps_its_input_alone(load: Callable[..., Decoder]) -> None:
    model = load().requires_grad_(True).train()
    packing = Packing([90, 40], [50, 60, 80], [0, 0, 1])
    inputs, row = random_ids(packing, model.config.vocab_size), len(packing.positions) * model.config.hidden_size * 4
    _, before = backward(model, inputs, "all")
    _, after = backward(recomputed(model), inputs, "all")
    layers = len(model.layers)
    assert before > 20 * layers * row
    assert layers * row <= after < (layers + 4) * row  # the last norm keeps some rows too


def test_nothing_runs_again_in_eval_mode(load: Callable[..., Decoder]) -> None:
    model = load().requires_grad_(True).eval()
    inputs = example(model)
    assert backward(recomputed(model), inputs)[1] == backward(model, inputs)[1]


def test_a_backbone_without_such_layers_is_refused(load: Callable[..., Decoder]) -> None:
    model = load()
    model.layers = torch.nn.ModuleList()
    with pytest.raises(BackboneError, match="gradient_checkpointing: a backbone of type 'llama' does not support it"):
        recompute_layers(model)
