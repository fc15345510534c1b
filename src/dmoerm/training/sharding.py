"""Frozen weights in pieces, for a backbone that no accelerator holds whole: FSDP2 (ZeRO's third stage) without its half.

    a linear layer or the embeddings, frozen    each process holds a piece; all get the whole for one call at a time
    what is trained, norms, heads, statistics   whole on every process, as without

A lane's clipping and its best state need whole weights, and what is trained beside a large frozen backbone is small. So
PyTorch's `fully_shard` is put on the frozen layers alone, and gradients meet by DDP. Each layer's call is a collective
of all processes: all must make the same calls in the same order (`batches.collate_parts`, `processes.own_evenly`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import broadcast
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ..config import Config
from ..errors import ConfigError
from ..model import DMoERM
from .processes import device, is_main, sharded, world


def check_sharding(config: Config) -> None:
    """Raises `ConfigError` where the launcher asks for pieces that these settings, or this project, cannot have."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ConfigError(
            "accelerate launch: DeepSpeed flattens all that is trained, of which a lane's clipping and best state need "
            "the whole; launch with FSDP, which divides the frozen weights as ZeRO-3 does (configs/accelerate/fsdp2.yaml)"
        )
    if not sharded():
        return
    for name, value, needed in (("version", "1", "2"), ("offload_params", "false", "false")):
        if (given := os.environ.get(f"FSDP_{name.upper()}", value)) != needed:
            raise ConfigError(
                f"accelerate launch: fsdp_{name} is {given}; set it to {needed} (configs/accelerate/fsdp2.yaml)"
            )
    for name, value, needed in (("base", config.base, "frozen"), ("router.kind", config.router.kind, "trunk")):
        if value != needed:
            raise ConfigError(
                f"{name} is {value}: FSDP divides frozen weights alone; set {name} to {needed}, or launch with "
                "configs/accelerate/ddp.yaml"
            )


def shard(model: DMoERM) -> None:
    """Gives each process its piece of every layer of the backbone, and the main process's values of all else.

    Args:
        model: one branch serves all its tasks. The main process's has its weights; the others' may be on `meta`.
    """
    mesh, parts = init_device_mesh(device().type, (world(),)), [model.trunk, model.general.branch]
    for module in [module for part in parts if part is not None for module in part.modules()]:
        if isinstance(module, nn.Linear | nn.Embedding):
            _spread(module)
            fully_shard(module, mesh=mesh, reshard_after_forward=_reshards())
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            _spread(module)


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within this, the main process's `state_dict` has whole weights, in its memory outside the accelerator.

    All processes must come here.
    """
    hooks = []
    for layer in (module for module in model.modules() if isinstance(module, FSDPModule)):
        put_together = ((name, whole(p)) for name, p in layer.named_parameters())
        kept = {name: weight.cpu() for name, weight in put_together if is_main()}
        hooks.append(layer.register_state_dict_post_hook(_instead(kept)))
    yield
    for hook in hooks:
        hook.remove()


def whole(weight: Tensor) -> Tensor:
    """The weight itself, put together where it is in pieces; then all processes must come here."""
    return weight.detach().full_tensor() if isinstance(weight, DTensor) else weight.detach()


def _instead(kept: dict[str, Tensor]) -> Any:
    def replace(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
        state.update({prefix + name: tensor for name, tensor in kept.items()})

    return replace


@torch.no_grad()
def _spread(module: nn.Module) -> None:
    """Puts the main process's values of a module's own weights on this process's device."""
    for name, weight in module.named_parameters(recurse=False):
        value = weight.detach().to(device()) if is_main() else torch.empty_like(weight, device=device())
        broadcast(value, src=0)
        setattr(module, name, nn.Parameter(value, requires_grad=weight.requires_grad))


def _reshards() -> bool:
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
