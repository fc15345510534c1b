"""Attention over the packed row as it is, by FlexAttention (arXiv 2412.05496): no padding and no copy of a prompt.

    keys        p p p p | p p | r r r | r r | r r r r
    a query of r sees the keys of its prompt, and of its own response up to itself

The kernel computes a tile of 128 × 128 logits at a time and skips tiles without a visible key. A `BlockMask` lists the
tiles; a function of four indices decides within those that are not wholly visible. So no tensor of T × T exists:

    tiles       4 lists of (T / 128)² numbers of 4 bytes: 1 MiB at T = 32,768, where a dense mask has 2 GiB in bfloat16
    tokens      12 bytes per token

Shapes as in packing.py; B tiles of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from transformers.integrations.flex_attention import get_flex_attention_lse_kwargs

from .packing import Outputs, Packing

_TILE = 128
_COMPILED_SHAPES = 64  # beyond it PyTorch would compute all logits at once


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: flex.BlockMask,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend from queries (k, H, queries, c) to all tokens (k, G, T, c); return (k, queries, H, c).

    Args:
        mask: see `BlockMasks.mask`.
        scale, softcap, sinks: see `attention.Options`. The kernel has no dropout.
    """
    states = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        **get_flex_attention_lse_kwargs(sinks is not None),
    )
    if sinks is not None:
        states, more = states
        logsumexp = more if isinstance(more, Tensor) else more.lse
        share = torch.sigmoid(logsumexp - sinks.float()[:, None])  # e^l / (e^l + e^sink)
        states = (states * share[..., None]).to(value.dtype)
    return states.transpose(1, 2)


@functools.cache
def _kernel(device_type: str) -> Callable[..., Any]:
    """Return PyTorch's function: compiled to a fused kernel, but on a CPU, where only tests run it, as it is."""
    if device_type == "cpu":
        return flex.flex_attention
    config: Any = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, _COMPILED_SHAPES)
    return torch.compile(flex.flex_attention, dynamic=True)


def _capped(bound: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return bound * torch.tanh(score / bound)

    return score_mod


class BlockMasks:
    """The block masks of a packing; see `Packing.derived`. Each is made once, on the device, without waiting for it."""

    def __init__(self, packing: Packing) -> None:
        prompt = torch.cat([packing.of_prompt, packing.owners[packing.of_response]])
        response = torch.cat([torch.zeros_like(packing.of_prompt), packing.of_response + 1])
        self._keys = torch.stack([prompt, response, packing.positions]).int()
        responses, last = slice(packing.prompt_tokens, None), packing.last
        self._of: dict[Outputs, Any] = {"all": slice(None), "responses": responses, "last": last}
        self._longest = packing.longest
        self._masks: dict[tuple[Outputs, int | None], flex.BlockMask] = {}

    def mask(self, queries: Outputs, window: int | None) -> flex.BlockMask:
        """Return the mask of some queries and all keys.

        Args:
            queries, window: see `attention.Attention`.
        """
        if (queries, window) not in self._masks:
            chosen, keys = self._keys[:, self._of[queries]].contiguous(), self._keys
            # a tensor also without a window: then one compiled kernel serves both
            width = torch.full((), window or self._longest, dtype=torch.int32, device=keys.device)
            some, every = _tiles(chosen, keys, width)
            self._masks[queries, window] = flex.BlockMask.from_kv_blocks(
                *_listed(some & ~every),
                *_listed(every),
                BLOCK_SIZE=_TILE,
                mask_mod=_visible(chosen, keys, width),
                seq_lengths=(chosen.shape[1], keys.shape[1]),
            )
        return self._masks[queries, window]


def _visible(queries: Tensor, keys: Tensor, window: Tensor) -> Callable[..., Tensor]:
    """Return the function that says whether a query sees a key; both (3, tokens): prompt, response or 0, position."""
    (q_prompt, q_response, q_position), (k_prompt, k_response, k_position) = queries, keys

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = q_position[query] - k_position[key]
        of_prompt = (k_response[key] == 0) | (k_response[key] == q_response[query])
        return (q_prompt[query] == k_prompt[key]) & of_prompt & (distance >= 0) & (distance < window)

    return mask_mod


def _tiles(queries: Tensor, keys: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Return which tiles (B of queries, B of keys) may have a visible key, and in which all keys are visible.

    They follow from the least and the greatest (with `_`) prompt, response and position of each tile's tokens.
    """
    (prompt, response, position), (prompt_, response_, position_) = (x[:, :, None] for x in _ranges(queries))
    (k_prompt, k_response, k_position), (k_prompt_, k_response_, k_position_) = (x[:, None] for x in _ranges(keys))
    overlap = (response <= k_response_) & (k_response <= response_)
    some = (prompt <= k_prompt_) & (k_prompt <= prompt_) & ((k_response == 0) | overlap)
    some = some & (k_position <= position_) & (position - k_position_ < window)
    same = (response == response_) & (k_response == k_response_) & (response == k_response)
    every = (prompt == prompt_) & (k_prompt == k_prompt_) & (prompt == k_prompt) & ((k_response_ == 0) | same)
    every = every & (k_position_ <= position) & (position_ - k_position < window)
    if queries.shape[1] % _TILE:
        every[-1] = False
    if keys.shape[1] % _TILE:
        every[:, -1] = False
    return some, every


def _ranges(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minima and maxima (3, B) over the tiles of tokens (3, n); the last tile repeats its last token."""
    count = tokens.shape[1]
    index = torch.arange(-(-count // _TILE) * _TILE, device=tokens.device).clamp(max=count - 1)
    return torch.aminmax(tokens[:, index].view(3, -1, _TILE), dim=2)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's number of tiles (1, 1, B) and their indices (1, 1, B, B); unlisted tiles follow."""
    indices = tiles.int().argsort(dim=1, descending=True, stable=True)
    return tiles.sum(1, dtype=torch.int32)[None, None], indices.int()[None, None]
