"""Shard the frozen weights of a backbone that does not fit on one accelerator, by FSDP2 or ZeRO stage 3.

    linear layers and embeddings of the backbone        sharded; a layer is gathered for each call and freed after it
    trained weights, norms, heads, statistics           replicated; DDP averages the gradients, as without sharding

Only frozen layers are sharded, with PyTorch's `fully_shard` or DeepSpeed's `zero.Init`. Clipping and the best state of
an expert need its whole weights, and the trained weights are small beside a large frozen backbone.

Each call of a sharded layer is a collective, so all processes must call the same layers in the same order. This is why
`batches.PackedCollator` and `processes.shard_evenly` add dummies: a process with fewer passes would block the others.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ..errors import BackboneError, ConfigError
from ..model import DMoERM
from .processes import device, is_main, sharded, sharding, world_size


class _Setting(NamedTuple):
    """A setting of accelerate, the environment variable that passes it on, its required and its default value."""

    name: str
    variable: str
    required: str
    default: str


_LAUNCHER_SETTINGS = {
    "FSDP": [
        _Setting("fsdp_version", "FSDP_VERSION", required="2", default="1"),
        _Setting("fsdp_offload_params", "FSDP_OFFLOAD_PARAMS", required="false", default="false"),
    ],
    "DEEPSPEED": [
        _Setting("zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", required="3", default="2"),
        _Setting("offload_param_device", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", required="none", default="none"),
        _Setting("deepspeed_config_file", "ACCELERATE_DEEPSPEED_CONFIG_FILE", required="none", default="none"),
    ],
}


def check_sharding(shared_branch: bool, own_router: bool) -> None:
    """Raise `ConfigError` if the launcher requests sharding that these settings do not support.

    Args:
        shared_branch: one frozen branch serves all tasks.
        own_router: the router has its own language model.
    """
    if (kind := sharding()) is None:
        return
    for name, variable, required, default in _LAUNCHER_SETTINGS[kind]:
        if (value := os.environ.get(variable, default).lower()) != required:
            raise ConfigError(f"accelerate launch: {name} is {value}; set it to {required}: see configs/accelerate")
    router = "router.kind to trunk, with a backbone.branch_layer above 0"
    for unsupported, setting in ((not shared_branch, "base to frozen"), (own_router, router)):
        if unsupported:
            raise ConfigError(
                f"accelerate launch: {kind} shards frozen weights only; set {setting}, "
                "or launch with configs/accelerate/ddp.yaml"
            )


def move_to_device(model: DMoERM) -> DMoERM:
    """Move the model to this process's device; if the launcher requests it, shard the layers of the backbone.

    Args:
        model: with sharding, the main process's values are used; the others' may be on the `meta` device.
    """
    if (kind := sharding()) is None:
        return model.to(device())  # pyright: ignore[reportArgumentType, reportReturnType]
    layers = _layers(model)
    _check_layers(model, layers)
    _SHARD[kind](layers)
    done = {id(layer) for layer in layers}
    for module in model.modules():
        if id(module) not in done:
            _replicate(module)
    return model


@contextlib.contextmanager
def full_state(model: DMoERM) -> Iterator[None]:
    """Make `state_dict` of the main process return whole weights, in CPU memory, within this context.

    A collective: all processes must enter the context.
    """
    with contextlib.ExitStack() as hooks:
        for layer in _layers(model) if sharded() else ():
            if isinstance(layer, FSDPModule):
                layer.reshard()  # else `state_dict` would reshard it, on the main process alone, and block
            full = ((name, full_tensor(p)) for name, p in layer.named_parameters())
            state = {name: weight.cpu() for name, weight in full if is_main()}
            hooks.callback(layer.register_state_dict_post_hook(_replace_with(state)).remove)
        yield


def full_tensor(weight: Tensor) -> Tensor:
    """Return the whole weight, detached. For a sharded weight this is a collective."""
    if isinstance(weight, DTensor):
        return weight.full_tensor().detach()
    if hasattr(weight, "ds_tensor"):
        with _deepspeed().zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return weight.detach()


def _replace_with(weights: dict[str, Tensor]) -> Any:
    """Return a state-dict hook that replaces a layer's sharded weights with these."""

    def replace(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
        state.update({prefix + name: tensor for name, tensor in weights.items()})

    return replace


def _backbone(model: DMoERM) -> list[nn.Module]:
    """Return the frozen parts of the model."""
    return [part for part in (model.trunk, model.general.branch) if part is not None]


def _layers(model: DMoERM) -> list[nn.Module]:
    """Return the frozen layers that hold nearly all weights; the experts' branches share them."""
    modules = (module for part in _backbone(model) for module in part.modules())
    return [module for module in modules if isinstance(module, nn.Linear | nn.Embedding)]


def _check_layers(model: DMoERM, layers: Sequence[nn.Module]) -> None:
    """Raise `BackboneError` if over a tenth of the weights is in other modules, such as stacked experts."""
    inside, total = ({p for m in modules for p in m.parameters()} for modules in (layers, _backbone(model)))
    if sum(p.numel() for p in inside) < 0.9 * sum(p.numel() for p in total):
        raise BackboneError(
            f"a backbone of type {model.config.backbone['model_type']!r} keeps weights outside linear layers and "
            "embeddings, and only these can be sharded; launch with configs/accelerate/ddp.yaml or use another backbone"
        )


@torch.no_grad()
def _replicate(module: nn.Module) -> None:
    """Copy the main process's values of a module's direct weights and buffers to this process's device."""
    for name, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        value = weight.detach().to(device()) if is_main() else torch.empty_like(weight, device=device())
        broadcast(value, src=0)
        is_weight = isinstance(weight, nn.Parameter)
        setattr(module, name, nn.Parameter(value, requires_grad=weight.requires_grad) if is_weight else value)


# --- the two backends ------------------------------------------------------------------------------------------------


def _shard_by_fsdp(layers: Sequence[nn.Module]) -> None:
    mesh = init_device_mesh(device().type, (world_size(),))
    reshards = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for layer in layers:
        _replicate(layer)
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshards)


def _shard_by_zero(layers: Sequence[nn.Module]) -> None:
    """Use DeepSpeed without an optimizer, as its inference does; it gathers a layer for each forward and backward."""
    deepspeed = _deepspeed()
    deepspeed.init_distributed()
    dtype = next(layers[0].parameters()).dtype
    settings = {
        "zero_optimization": {"stage": 3},
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    for layer in layers:
        _replicate(layer)
        # DeepSpeed's memory-efficient linear function would replace PyTorch's in the whole process.
        deepspeed.zero.Init(module=layer, config_dict_or_path=settings, dtype=dtype, mem_efficient_linear=False)
    deepspeed.initialize(model=nn.ModuleList(layers), config=settings)


_SHARD: dict[str, Callable[[Sequence[nn.Module]], None]] = {"FSDP": _shard_by_fsdp, "DEEPSPEED": _shard_by_zero}


def _deepspeed() -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("ZeRO needs DeepSpeed: pip install 'dmoerm[deepspeed]'") from None
    return deepspeed
