"""The processes that work on one run together: how many, which one this is, and what they give each other.

Under `accelerate launch` or `torchrun` they are several, one an accelerator; else there is one, and all here is free.
Every process runs the same program on the same settings. Work is dealt out with `own` and put together with
`rejoined`; the main process alone writes what all read. Whoever calls one of `barrier`, `agreed`, `rejoined` and
`gathered_rows` waits for the others: all must call it, in the same order.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_args

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object, pad_across_processes
from torch import Tensor

T = TypeVar("T")
Sharding = Literal["FSDP", "DEEPSPEED"]
_PATIENCE = timedelta(hours=2)  # a process may wait so long for the slowest; one that has died ends all others at once


def join() -> PartialState:
    """This process among the others; from the first call on, `cuda` is its own GPU. Without GPUs they share the CPU."""
    sharding()  # first: what it takes would make the processes others
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


@functools.cache
def sharding() -> Sharding | None:
    """Whether, and by what, the launcher wants weights in pieces, one a process.

    It is taken from the environment, where accelerate would find it and divide what is trained, too; see `sharding.py`.
    """
    asked = {kind: os.environ.pop(f"ACCELERATE_USE_{kind}", "false").lower() == "true" for kind in get_args(Sharding)}
    return next((kind for kind, wanted in asked.items() if wanted), None)


def sharded() -> bool:
    """Whether frozen weights are in pieces."""
    return sharding() is not None


def world() -> int:
    """The number of processes."""
    return join().num_processes


def rank() -> int:
    """This process's number, from 0."""
    return join().process_index


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def device() -> torch.device:
    """This process's own GPU, or the CPU where there is none."""
    return torch.device(join().device or "cpu")


def idle_gpus() -> str | None:
    """Return a message if this machine has more GPUs than this run has processes, else None."""
    gpus = torch.cuda.device_count()
    if gpus < 2 or world() > 1:
        return None
    return (
        f"{gpus} GPUs are visible, and one process uses one of them; to use all, run "
        f"accelerate launch --multi_gpu --num_processes {gpus} -m dmoerm.cli train …"
    )


def barrier() -> None:
    """Waits until every process has come here."""
    join().wait_for_everyone()


def own(rows: Sequence[T]) -> Sequence[T]:
    """This process's share of what all have in the same order: every `world()`-th."""
    return rows[rank() :: world()] if world() > 1 else rows


def own_evenly(rows: Sequence[T]) -> Sequence[T]:
    """As `own`, of passes through layers that may be in pieces: then all processes must make as many.

    What stands behind the process's own is made for the others' sake, and nobody looks at it.
    """
    mine = own(rows)
    return [*mine, *rows[:1]] if sharded() and len(mine) < -(-len(rows) // world()) else mine


def rejoined(shares: Sequence[T]) -> list[T]:
    """What the processes have made of their `own` rows, in the order of all rows, on every process."""
    if world() == 1:
        return list(shares)
    dealt: list[Sequence[T]] = gather_object([shares])
    return [each[i] for i in range(max(map(len, dealt))) for each in dealt if i < len(each)]


def agreed(value: T) -> T:
    """The main process's value, on every process: what would otherwise be decided by each for itself."""
    return broadcast_object_list([value])[0] if world() > 1 else value


def gathered_rows(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All processes' rows; where a process has fewer than another, rows of zeros come with them."""
    if world() == 1:
        return tensors
    padded: Any = pad_across_processes(tensors, dim=0)
    found: Any = gather(padded)
    return found
