"""The tokens of a pass by default: as many as its device has memory for, since small passes of a GPU wait for launches.

    CPU            8192
    accelerator    65,536, or the next lower power of two whose activations take at most half of the free memory;
                   8192 and less may take all of it. 8192 if the backbone runs by its own forward: each of its rows has
                   the prompt again, which these tokens do not count

A token counts once per expert with a LoRA. Half of the memory is left for what is not counted, such as attention,
embeddings and the allocator's fragments. A power of two stays the same if the free memory varies a little.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ..planning import BackboneShape
from ..planning.memory import PASS_TOKENS, kept_bytes, pass_bytes, trained_bytes
from ..planning.work import EXPERTS_OF_A_LAYER
from .families import is_packed
from .packed_attention import Decoder

MAX_PASS_TOKENS = 65_536
_SHARE = 0.5


def scoring_tokens(decoder: Decoder) -> int:
    """Return the tokens of a pass without gradients through a trunk or branch."""
    shape = _packed_shape(decoder)
    return PASS_TOKENS if shape is None else _fitting(decoder, _running(decoder, shape))


def training_tokens(branch: Decoder, *, checkpointing: bool | str) -> int:
    """Return the tokens of a pass with a backward pass, before gradients and optimizer state are allocated.

    Args:
        branch: with its trainable weights, which may be in shards.
        checkpointing: see `kept_bytes`.
    """
    if (shape := _packed_shape(branch)) is None:
        return PASS_TOKENS
    size = _size(branch)
    kept = kept_bytes(shape, shape.layers, size, 1, checkpointing)
    trainable = (p for p in branch.parameters() if p.requires_grad)
    trained = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in trainable)
    return _fitting(branch, kept + _running(branch, shape), trained_bytes(trained, size))


def _packed_shape(decoder: Decoder) -> BackboneShape | None:
    """Return the shape of a packed decoder, as far as it is known."""
    return shape_of(decoder.config) if is_packed(decoder.config) else None


def _running(decoder: Decoder, shape: BackboneShape) -> float:
    """Return the bytes per token of the layer that runs."""
    return pass_bytes(shape, _size(decoder), 1)


def _size(decoder: Decoder) -> int:
    """Return the bytes of a number in the dtype in which the decoder computes; see `packed_attention.computing`."""
    return 2 if decoder.config.dtype in (torch.bfloat16, torch.float16) else 4


def _fitting(decoder: Decoder, token_bytes: float, reserved: float = 0.0) -> int:
    """Return the tokens of a pass on the decoder's device.

    Args:
        reserved: bytes that will be allocated for something else.
    """
    free = free_memory(decoder.device)
    if free is None:
        return PASS_TOKENS
    fitting = (free - reserved) / token_bytes
    return min(MAX_PASS_TOKENS, max(_power_of_two(_SHARE * fitting), min(PASS_TOKENS, _power_of_two(fitting))))


def _power_of_two(tokens: float) -> int:
    """Return the largest power of two that is not larger, at least 1."""
    return 1 << max(1, int(tokens)).bit_length() - 1


def shape_of(text: Any) -> BackboneShape | None:
    """Return the shape of a decoder whose layers all have one feed-forward part, with a gate; else None.

    A layer without a gate takes less memory.

    Args:
        text: the text model's configuration.
    """
    if any(getattr(text, name, None) for name in EXPERTS_OF_A_LAYER):
        return None
    try:
        return BackboneShape.of(text)
    except AttributeError:
        return None


def free_memory(device: torch.device) -> float | None:
    """Return the bytes that tensors can still take on an accelerator; None on a CPU, or if PyTorch cannot tell."""
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "mem_get_info"):
        return None
    unused = module.memory_reserved(device) - module.memory_allocated(device)  # which PyTorch holds for new tensors  # pyright: ignore[reportOptionalMemberAccess]
    return module.mem_get_info(device)[0] + unused  # pyright: ignore[reportOptionalMemberAccess]
