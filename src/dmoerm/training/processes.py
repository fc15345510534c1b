"""Communication between the processes of a run: rank, world size, and collectives.

`accelerate launch` and `torchrun` start several processes, usually one per GPU, which run the same program. In a single
process, all functions return their input unchanged. Those below `barrier` are collectives: every process must call them
in the same order, or the run deadlocks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object, pad_across_processes
from torch import Tensor, distributed

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # limit on waiting for the slowest process; a process that dies ends the others at once


def process_state() -> PartialState:
    """Return accelerate's state of this process; the first call selects its GPU, or the CPU if there are no GPUs."""
    sharded()  # reads and removes a variable that would change the state
    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


@functools.cache
def sharded() -> bool:
    """Return whether the launcher requests that weights are sharded over the processes (FSDP2).

    The variable is removed from the environment. Otherwise accelerate would shard the trained weights too; see
    `sharding.py`.
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


def barrier() -> None:
    """Wait until all processes have reached this point."""
    process_state().wait_for_everyone()


def all_gather(local: Sequence[T]) -> list[T]:
    """Return the results of all processes for their `shard` of the rows, in the order of all rows."""
    if world_size() == 1:
        return list(local)
    shards: list[Sequence[T]] = gather_object([local])
    return [rows[i] for i in range(max(map(len, shards))) for rows in shards if i < len(rows)]


def gather_passes(local: Iterable[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Return the rows of all passes in their order, on the CPU; each process computes its `shard` of the passes.

    One pass of each process is gathered at a time, so a device never holds more than these.

    Args:
        local: outputs (size, …) of this process's passes; further ones, of `shard_evenly`, are ignored.
        sizes: the number of rows of every pass.
    """
    if world_size() == 1:
        return [output.cpu() for output in local]
    outputs, gathered = iter(local), list[Tensor]()
    form: tuple[Any, Any] | None = None
    for start in range(0, len(sizes), world_size()):
        output, current = next(outputs, None), sizes[start : start + world_size()]
        # the main process has a pass in every round; a process without any does not know the form of a row
        form = form or broadcast(None if output is None else (output.shape[1:], output.dtype))
        assert form is not None
        block = torch.zeros((max(current), *form[0]), dtype=form[1], device=device())
        if output is not None and rank() < len(current):
            block[: len(output)] = output
        blocks: Any = gather(block)
        gathered += [rows[:size] for rows, size in zip(blocks.cpu().split(max(current)), current, strict=False)]
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
