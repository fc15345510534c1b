"""Shard the weights of a model that does not fit on one accelerator, by PyTorch's FSDP2.

    layers of the trunk                                 sharded; a layer is gathered for each call and freed after it
    linear layers and embeddings of the branches        the same, one by one: the experts' branches call them too
    a branch that is trained                            a float32 copy, sharded by layer, with its gradients and
                                                        optimizer state; its values return to the model's branch
    LoRA, heads, statistics, norms of branches          replicated; gradients are averaged, as without sharding

Each call of a sharded layer is a collective, so all processes must call the same layers in the same order. This is why
`batches.PackedCollator` and `processes.shard_evenly` add dummies: a process with fewer passes would block the others.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import BackboneError, ConfigError
from ..model import DMoERM
from ..model.heads import BranchScorer
from ..model.layers import empty_part
from .processes import copy_from_main, device, is_main, sharded, world_size

_LAUNCHER_SETTINGS = {"fsdp_version": ("2", "1"), "fsdp_offload_params": ("false", "false")}
"""Setting of accelerate → the required value, and accelerate's default. A variable passes it on."""
_CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"


def check_sharding(own_router: bool) -> None:
    """Raise `ConfigError` if the launcher requests sharding that these settings do not support.

    Args:
        own_router: the router has its own language model.
    """
    if not sharded():
        return
    for name, (required, default) in _LAUNCHER_SETTINGS.items():
        if (value := os.environ.get(name.upper(), default).lower()) != required:
            raise ConfigError(f"accelerate launch: {name} is {value}; set it to {required}: see {_CONFIGS}")
    if own_router:
        raise ConfigError(
            "accelerate launch: FSDP shards no language model of a router; set router.kind to trunk, with a "
            f"backbone.branch_layer above 0, or launch with {_CONFIGS}/ddp.yaml"
        )


def move_to_device(model: DMoERM) -> DMoERM:
    """Move the model to this process's device; if the launcher requests it, shard the layers of the backbone.

    Args:
        model: with sharding, the main process's values are used; the others' may be on the `meta` device.
    """
    if not sharded():
        return model.to(device())  # pyright: ignore[reportArgumentType, reportReturnType]
    _check_layers(model, [layer for part in _parts(model) for layer in _layers(part)])
    options: Any = _options(model.general.branch.config.dtype)  # pyright: ignore
    parts = _units(model)
    units = list(itertools.chain(*parts))
    for unit in units:
        for module in unit.modules():
            _replicate(module, {})
        fully_shard(unit, **options)
    for part in parts:
        _prefetch(part)
    root = _Root(units)
    fully_shard(root, **options)
    root()  # sets up the streams that the units share
    inside = {id(module) for unit in units for module in unit.modules()}
    copies: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if id(module) not in inside:
            _replicate(module, copies)
    return model


class _Root(nn.Module):
    """The root of sharded modules that are called one by one: FSDP2 sets up a root's modules in its first call."""

    def __init__(self, units: Sequence[nn.Module]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self) -> None:
        """Compute nothing."""


@contextlib.contextmanager
def full_state(model: DMoERM) -> Iterator[None]:
    """Make `state_dict` of the main process return whole weights, in CPU memory, within this context.

    A collective: all processes must enter the context.
    """
    with contextlib.ExitStack() as hooks:
        for unit in itertools.chain(*_units(model)) if sharded() else ():
            if isinstance(unit, FSDPModule):
                unit.reshard()  # else `state_dict` would reshard it, on the main process alone, and block
            state = whole_state(dict(unit.named_parameters()))
            hooks.callback(unit.register_state_dict_post_hook(functools.partial(_replace, state)).remove)
        yield


def _replace(weights: Mapping[str, Tensor], _: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """Replace a layer's sharded weights in its state; a state-dict hook."""
    state.update({prefix + name: tensor for name, tensor in weights.items()})


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the whole tensors of a state, in CPU memory, in the main process; nothing in the others. A collective."""
    if not sharded():
        return dict(state)
    full = ((name, full_tensor(tensor)) for name, tensor in state.items())
    return {name: tensor.cpu() for name, tensor in full if is_main()}


def full_tensor(weight: Tensor) -> Tensor:
    """Return the whole weight, detached. For a sharded weight this is a collective."""
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach()


def _parts(model: DMoERM) -> list[nn.Module]:
    tasks = () if model.config.shared_branch else model.config.tasks
    branches = [model.general.branch, *(model.task_model(task).base.branch for task in tasks)]
    return branches if model.trunk is None else [model.trunk, *branches]


def _layers(part: nn.Module) -> list[nn.Module]:
    """Return the layers that hold nearly all weights of a part; the experts' branches share them."""
    return [module for module in part.modules() if isinstance(module, nn.Linear | nn.Embedding)]


def _units(model: DMoERM) -> list[list[nn.Module]]:
    """Return the modules of each part that are gathered one by one, in the order of their calls."""
    trunk: Any = model.trunk
    if trunk is not None:
        return [[trunk.embed_tokens, *trunk.layers], *map(_layers, _parts(model)[1:])]
    return [_layers(part) for part in _parts(model)]


def _check_layers(model: DMoERM, layers: Sequence[nn.Module]) -> None:
    """Raise `BackboneError` if over a tenth of the weights is in other modules, such as stacked experts."""
    inside, total = ({p for m in modules for p in m.parameters()} for modules in (layers, _parts(model)))
    if sum(p.numel() for p in inside) < 0.9 * sum(p.numel() for p in total):
        raise BackboneError(
            f"a backbone of type {model.config.backbone['model_type']!r} keeps weights outside linear layers and "
            f"embeddings, and only these can be sharded; launch with {_CONFIGS}/ddp.yaml or use another backbone"
        )


@torch.no_grad()
def _replicate(module: nn.Module, copies: dict[int, nn.Parameter]) -> None:
    """Copy the main process's values of a module's direct weights and buffers to this process's device."""
    for name, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        # modules that share a weight, such as the experts' norms, share its copy
        if id(weight) not in copies or not isinstance(weight, nn.Parameter):
            value = weight.detach().to(device()) if is_main() else torch.empty_like(weight, device=device())
            copy_from_main([value])
            if not isinstance(weight, nn.Parameter):
                setattr(module, name, value)
                continue
            copies[id(weight)] = nn.Parameter(value, requires_grad=weight.requires_grad)
        setattr(module, name, copies[id(weight)])


def _options(compute_dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of `fully_shard`; float32 weights are gathered in the dtype in which layers compute."""
    half = compute_dtype in (torch.bfloat16, torch.float16)
    policy = MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)
    return {
        "mesh": init_device_mesh(device().type, (world_size(),)),
        "reshard_after_forward": os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false",
        "mp_policy": policy if half else MixedPrecisionPolicy(),
    }


def _prefetch(units: Sequence[nn.Module]) -> None:
    """Let each sharded module gather the next one's weights while it runs; backward passes do so by themselves.

    A pass has to call all of them, or the last ones keep weights that may change before the next pass.
    """
    for unit, following in itertools.pairwise(units):
        unit.set_modules_to_forward_prefetch([following])  # pyright: ignore[reportCallIssue]


# --- a branch that is trained -----------------------------------------------------------------------------------------


def sharded_scorer(start: BranchScorer, head: nn.Module) -> BranchScorer:
    """Return a scorer with a head and a trainable float32 copy of the start's branch, sharded by layer.

    A layer is gathered for its pass, and its gradients are averaged when its backward pass ends. The last layer belongs
    to the root: a pass calls it twice (see layers.py), and FSDP2 would average its gradients after the first call.
    """
    source: Any = start.branch
    branch: Any = empty_part(source.config, source.config.num_hidden_layers)
    branch.embed_tokens = None  # it is the trunk's
    branch.float().requires_grad_(True)
    scorer = BranchScorer(branch, head, start.pooling)  # pyright: ignore[reportArgumentType]
    options = _options(source.config.dtype)
    layers = list(branch.layers)[:-1]
    for layer in layers:
        _materialize(layer)
        fully_shard(layer, **options)
    _materialize(branch)
    fully_shard(scorer, ignored_params=set(head.parameters()), **options)
    _prefetch([scorer, *layers])
    _copy(branch, dict(reshard(source).named_parameters()))
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
            value, mesh = state[name], weight.device_mesh
            if not isinstance(value, DTensor):
                value = distribute_tensor(value.to(weight.device), mesh, weight.placements, src_data_rank=None)
            weight.to_local().copy_(value.to_local())
        else:
            weight.data = full_tensor(state[name]).to(weight.device, copy=True)


def reshard(module: nn.Module) -> nn.Module:
    """Reshard the module's layers and return it; values written to gathered weights would be lost."""
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
