"""Train a sharded branch: a copy of it in shards of layers (FSDP2), and its values back into the model's branch.

    the model's branch (frozen, each layer in shards) ──▶ copy (float32) ──train──▶ state ──▶ the model's branch

Each process has its rows of every weight, gradient and optimizer state. A layer is gathered for its pass and its
gradients are averaged when its backward pass ends. The last layer belongs to the root: a pass calls it twice (see
layers.py), and FSDP2 would average its gradients after the first of the two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..model.heads import BranchScorer
from ..model.layers import empty_part
from .processes import device
from .sharding import fsdp_options, full_tensor, prefetch


def sharded_scorer(start: BranchScorer, head: nn.Module) -> BranchScorer:
    """Return a scorer with a head and a trainable float32 copy of the start's branch, sharded by layer."""
    source: Any = start.branch
    branch: Any = empty_part(source.config, source.config.num_hidden_layers)
    branch.embed_tokens = None  # it is the trunk's
    branch.float().requires_grad_(True)
    scorer = BranchScorer(branch, head, start.pooling)  # pyright: ignore[reportArgumentType]
    options = fsdp_options(source.config.dtype)
    layers = list(branch.layers)[:-1]
    for layer in layers:
        _materialize(layer)
        fully_shard(layer, **options)
    _materialize(branch)
    fully_shard(scorer, ignored_params=set(head.parameters()), **options)
    prefetch([scorer, *layers])
    _copy(branch, dict(at_rest(source).named_parameters()))
    return scorer


def is_sharded(module: nn.Module) -> bool:
    """Return whether some weights of a module are in shards."""
    return any(isinstance(module, FSDPModule) for module in module.modules())


def copy_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy a state into a module in place; each may be in shards. If some of the state is, this is a collective."""
    for part in module.modules():
        if isinstance(part, FSDPModule):  # `MergedLoRALinear` does not call a layer that is gathered in advance
            part.unshard()
            part.reshard()
    _copy(module, state)


@torch.no_grad()
def _copy(module: nn.Module, state: dict[str, Tensor]) -> None:
    for name, weight in module.named_parameters():
        if isinstance(weight, DTensor):
            weight.to_local().copy_(_rows(state[name], weight))
        else:
            weight.data = full_tensor(state[name]).to(weight.device, copy=True)


def _rows(value: Tensor, weight: DTensor) -> Tensor:
    """Return this process's rows of a value for a sharded weight."""
    if not isinstance(value, DTensor):
        value = distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
    return value.to_local()


def at_rest(module: nn.Module) -> nn.Module:
    """Return the module after its layers have let go of gathered weights, whose values would be lost."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return module


def _materialize(module: nn.Module) -> None:
    """Give the weights and buffers that are not sharded yet memory on this process's device."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight.is_meta:
                setattr(part, name, nn.Parameter(torch.empty_like(weight, device=device())))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device()))
