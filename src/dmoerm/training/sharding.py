"""Frozen weights in pieces, for a backbone that no accelerator holds whole: by FSDP2, or by ZeRO's third stage.

    linear layers and embeddings of the backbone   each process holds a piece; all get the whole for a call, one by one
    what is trained, norms, heads, statistics      whole on every process, and gradients meet by DDP, as without

An expert's clipping and its best state need whole weights, and what is trained beside a large frozen backbone is small.
So PyTorch's `fully_shard`, or DeepSpeed's `zero.Init`, is put on the frozen layers alone. Each call of a layer is a
collective of all processes: all must make the same ones in the same order (`batches.PackedCollator`,
`processes.own_evenly`).
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
from .processes import device, is_main, sharded, sharding, world


class _Asked(NamedTuple):
    """A setting of accelerate's, as it hands it on."""

    name: str
    variable: str
    needed: str
    usual: str


_ASKED = {
    "FSDP": [
        _Asked("fsdp_version", "FSDP_VERSION", needed="2", usual="1"),
        _Asked("fsdp_offload_params", "FSDP_OFFLOAD_PARAMS", needed="false", usual="false"),
    ],
    "DEEPSPEED": [
        _Asked("zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", needed="3", usual="2"),
        _Asked("offload_param_device", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", needed="none", usual="none"),
        _Asked("deepspeed_config_file", "ACCELERATE_DEEPSPEED_CONFIG_FILE", needed="none", usual="none"),
    ],
}


def check_sharding(shared_branch: bool, own_router: bool) -> None:
    """Raises `ConfigError` where the launcher asks for pieces that it cannot have.

    Args:
        shared_branch: one frozen branch serves all tasks; own_router: the router has a language model of its own.
    """
    if (kind := sharding()) is None:
        return
    for name, variable, needed, usual in _ASKED[kind]:
        if (given := os.environ.get(variable, usual).lower()) != needed:
            raise ConfigError(f"accelerate launch: {name} is {given}; set it to {needed}: see configs/accelerate")
    router = "router.kind to trunk, with a backbone.branch_layer above 0"
    for wrong, setting in ((not shared_branch, "base to frozen"), (own_router, router)):
        if wrong:
            raise ConfigError(
                f"accelerate launch: {kind} divides the weights that stay frozen, and nothing else; set {setting}, "
                "or launch with configs/accelerate/ddp.yaml"
            )


def place(model: DMoERM) -> DMoERM:
    """Puts the model on this process's device: whole, or its piece of every layer of the backbone.

    Args:
        model: of one whose weights go in pieces, the main process's values count; the others' may be on `meta`.
    """
    if (kind := sharding()) is None:
        return model.to(device())  # pyright: ignore[reportArgumentType, reportReturnType]
    layers = _layers(model)
    _check_layers(model, layers)
    _DIVIDE[kind](layers)
    done = {id(layer) for layer in layers}
    for module in model.modules():
        if id(module) not in done:
            _spread(module)
    return model


@contextlib.contextmanager
def gathered(model: DMoERM) -> Iterator[None]:
    """Within this, the main process's `state_dict` has whole weights, in its memory outside the accelerator.

    All processes must come here.
    """
    with contextlib.ExitStack() as hooks:
        for layer in _layers(model) if sharded() else ():
            if isinstance(layer, FSDPModule):
                layer.reshard()  # where it stays whole, `state_dict` would divide it, on the main process alone
            put_together = ((name, whole(p)) for name, p in layer.named_parameters())
            kept = {name: weight.cpu() for name, weight in put_together if is_main()}
            hooks.callback(layer.register_state_dict_post_hook(_instead(kept)).remove)
        yield


def whole(weight: Tensor) -> Tensor:
    """The weight itself, put together where it is in pieces; then all processes must come here."""
    if isinstance(weight, DTensor):
        return weight.full_tensor().detach()
    if hasattr(weight, "ds_tensor"):
        with _deepspeed().zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return weight.detach()


def _instead(kept: dict[str, Tensor]) -> Any:
    def replace(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
        state.update({prefix + name: tensor for name, tensor in kept.items()})

    return replace


def _backbone(model: DMoERM) -> list[nn.Module]:
    """Its frozen parts."""
    return [part for part in (model.trunk, model.general.branch) if part is not None]


def _layers(model: DMoERM) -> list[nn.Module]:
    """The frozen layers that have nearly all weights; the experts' branches share them."""
    modules = (module for part in _backbone(model) for module in part.modules())
    return [module for module in modules if isinstance(module, nn.Linear | nn.Embedding)]


def _check_layers(model: DMoERM, layers: Sequence[nn.Module]) -> None:
    """Raises `BackboneError` for a backbone much of whose weights is elsewhere, such as in stacked experts."""
    inside, whole_backbone = ({p for m in of for p in m.parameters()} for of in (layers, _backbone(model)))
    if sum(p.numel() for p in inside) < 0.9 * sum(p.numel() for p in whole_backbone):
        raise BackboneError(
            f"a backbone of type {model.config.backbone['model_type']!r} keeps weights outside linear layers and "
            "embeddings, and these alone go in pieces; launch with configs/accelerate/ddp.yaml, or use another"
        )


@torch.no_grad()
def _spread(module: nn.Module) -> None:
    """Puts the main process's values of a module's own weights and buffers on this process's device."""
    for name, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        value = weight.detach().to(device()) if is_main() else torch.empty_like(weight, device=device())
        broadcast(value, src=0)
        is_weight = isinstance(weight, nn.Parameter)
        setattr(module, name, nn.Parameter(value, requires_grad=weight.requires_grad) if is_weight else value)


# --- the two ways --------------------------------------------------------------------------------------------------


def _by_fsdp(layers: Sequence[nn.Module]) -> None:
    mesh = init_device_mesh(device().type, (world(),))
    reshards = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for layer in layers:
        _spread(layer)
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshards)


def _by_zero(layers: Sequence[nn.Module]) -> None:
    """DeepSpeed without an optimiser, as in its inference: it puts a layer together before a call, forward or back."""
    deepspeed = _deepspeed()
    deepspeed.init_distributed()
    dtype = next(layers[0].parameters()).dtype
    settings = {
        "zero_optimization": {"stage": 3},
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    for layer in layers:
        _spread(layer)
        # Its own linear function would replace PyTorch's in the whole process.
        deepspeed.zero.Init(module=layer, config_dict_or_path=settings, dtype=dtype, mem_efficient_linear=False)
    deepspeed.initialize(model=nn.ModuleList(layers), config=settings)


_DIVIDE: dict[str, Callable[[Sequence[nn.Module]], None]] = {"FSDP": _by_fsdp, "DEEPSPEED": _by_zero}


def _deepspeed() -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        import deepspeed  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("ZeRO needs DeepSpeed: pip install 'dmoerm[deepspeed]'") from None
    return deepspeed
