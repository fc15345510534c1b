"""The processes of a run: collectives, and the shards of weights that do not fit on one accelerator (PyTorch's FSDP2).

`accelerate launch` and `torchrun` start several processes, usually one per GPU, which run the same program. In a single
process, the collectives return their input unchanged. Every process must call them in the same order, or the run
deadlocks. With sharding, a pass is a collective too:

    layers of the trunk                                 sharded; a layer is gathered for each call and freed after it
    linear layers and embeddings of the branches        the same, one by one: the experts' branches call them too
    a branch that is trained                            a float32 copy, sharded by layer, with its gradients and
                                                        optimizer state; its values return to the model's branch
    LoRA, heads, statistics, norms of branches          replicated; gradients are averaged, as without sharding

This is why `losses.PackedCollator` and `shard_evenly` add dummies: a process with fewer passes would block the others.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object, pad_across_processes
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import BackboneError, ConfigError
from ..model import DMoERM
from ..model.heads import BranchScorer
from ..model.layers import empty_part

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # limit on waiting for the slowest process; a process that dies ends the others at once
_LAUNCHER_SETTINGS = {"fsdp_version": ("2", "1"), "fsdp_offload_params": ("false", "false")}
"""Setting of accelerate → the required value, and accelerate's default. A variable passes it on."""
_CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"


# --- this process -----------------------------------------------------------------------------------------------------


def process_state() -> PartialState:
    """Return accelerate's state of this process; the first call selects its GPU, or the CPU if there are no GPUs."""
    sharded()  # reads and removes a variable that would change the state
    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


@functools.cache
def sharded() -> bool:
    """Return whether the launcher requests that weights are sharded over the processes (FSDP2).

    The variable is removed from the environment. Otherwise accelerate would shard the trained weights too.
    """
    return os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"


def world_size() -> int:
    """Return the number of processes."""
    return process_state().num_processes


def rank() -> int:
    """Return the index of this process, 0 … world size − 1."""
    return process_state().process_index


def is_main() -> bool:
    """Return whether this process has rank 0; it alone writes files and prints."""
    return rank() == 0


def device() -> torch.device:
    """Return this process's GPU, or the CPU if there are no GPUs."""
    return torch.device(process_state().device or "cpu")


def idle_gpus() -> str | None:
    """Return a message if a single process runs on a machine with several GPUs, else None."""
    gpus = torch.cuda.device_count()
    if gpus < 2 or world_size() > 1:
        return None
    return (
        f"{gpus} GPUs are visible, and one process uses one of them; to use all, run "
        f"accelerate launch --multi_gpu --num_processes {gpus} -m dmoerm.cli train …"
    )


def shard(rows: Sequence[T]) -> Sequence[T]:
    """Return this process's rows: every `world_size()`-th, starting at its rank."""
    return rows[rank() :: world_size()] if world_size() > 1 else rows


def shard_evenly(rows: Sequence[T]) -> Sequence[T]:
    """Return this process's rows; if weights are sharded, every process gets the same number of rows.

    A pass through sharded layers is a collective, so all processes must make the same number of passes. A process with
    fewer rows gets the first row as a dummy at the end; callers discard its result.
    """
    local = shard(rows)
    return [*local, *rows[:1]] if sharded() and len(local) < -(-len(rows) // world_size()) else local


# --- collectives ------------------------------------------------------------------------------------------------------


def barrier() -> None:
    """Wait until all processes have reached this point."""
    process_state().wait_for_everyone()


def all_gather(local: Sequence[T]) -> list[T]:
    """Return the results of all processes for their `shard` of the rows, in the order of all rows."""
    if world_size() == 1:
        return list(local)
    shards: list[Sequence[T]] = gather_object([local])
    return [rows[i] for i in range(max(map(len, shards))) for rows in shards if i < len(rows)]


def gather_passes(local: Iterable[Tensor], count: int) -> list[Tensor]:
    """Return the outputs of all passes in their order, on the CPU; each process computes its `shard` of the passes.

    One pass of each process is gathered at a time, so a device never holds more than these.

    Args:
        local: outputs of this process's passes; further ones, of `shard_evenly`, are ignored.
        count: the number of all passes.
    """
    if world_size() == 1:
        return [output.cpu() for output in local]
    outputs, gathered = iter(local), list[Any]()
    for done in range(0, count, world_size()):
        output = next(outputs, None)
        gathered += gather_object([None if output is None else output.cpu()])[: count - done]
    return gathered


def gather_rows(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Concatenate the rows of all processes; shorter tensors are padded with rows of zeros first."""
    if world_size() == 1:
        return tensors
    padded: Any = pad_across_processes(tensors, dim=0)
    gathered: Any = gather(padded)
    return gathered


def broadcast(value: T) -> T:
    """Return the main process's value on every process, so that all make the same decision."""
    return broadcast_object_list([value])[0] if world_size() > 1 else value


def smallest(value: int) -> int:
    """Return the smallest value of all processes."""
    return min(gather_object([value])) if world_size() > 1 else value


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Set the tensors to the main process's values, in place."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def average(tensors: Iterable[Tensor]) -> None:
    """Set each tensor to its mean over the processes, in place."""
    if world_size() > 1:
        running = [(tensor, distributed.all_reduce(tensor, async_op=True)) for tensor in tensors]
        for tensor, reduction in running:
            reduction.wait()  # pyright: ignore[reportOptionalMemberAccess]
            tensor.div_(world_size())


def total(tensor: Tensor) -> Tensor:
    """Return the sum of the processes' tensors."""
    summed = tensor.clone()
    if world_size() > 1:
        distributed.all_reduce(summed)
    return summed


# --- a sharded model --------------------------------------------------------------------------------------------------


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
            weights = whole_state(dict(unit.named_parameters()))

            def replace(_: Any, state: dict[str, Tensor], prefix: str, *__: Any, whole: Any = weights) -> None:
                state.update({prefix + name: tensor for name, tensor in whole.items()})

            hooks.callback(unit.register_state_dict_post_hook(replace).remove)
        yield


def whole_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
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
