"""Copies between host and device: one for all tensors of a dtype, since each copy has a fixed cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: Any) -> Tensor:
    """Return a tensor on a device. A copy to an accelerator does not wait; one to the CPU must, to be complete."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


def transfer(tensors: Sequence[Tensor], device: Any) -> list[Tensor]:
    """Return small tensors on a device, as parts of one copy per dtype; see `to_device`."""
    device = torch.device(device)
    if all(tensor.device == device for tensor in tensors):
        return list(tensors)
    moved = list(tensors)
    for dtype in {tensor.dtype for tensor in tensors}:
        chosen = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        whole = to_device(torch.cat([tensors[i].flatten() for i in chosen]), device)
        for i, part in zip(chosen, whole.split([tensors[i].numel() for i in chosen]), strict=True):
            moved[i] = part.view(tensors[i].shape)
    return moved
