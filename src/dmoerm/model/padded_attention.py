"""Attention of packed tokens on padded rows: PyTorch's kernels with a dense mask, or plain matrix products.

The fastest form on a CPU. A row and its mask take memory for the product of queries and keys.

Shapes as in packing.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from .attention_options import AttentionOptions, Stage
from .packing import Packing
from .padded_rows import AttentionGroup, Buckets

_BLOCK = 2_000_000  # attention weights in memory at once: as many as fit in a CPU's caches


def attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, stage: Stage, options: AttentionOptions
) -> Tensor:
    """Attend from a stage's queries (k, H, queries, c) to all tokens (k, G, T, c); return (k, queries, H, c)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    buckets, first = packing.derived(Buckets), packing.prompt_tokens
    if stage == "last":
        return _last(q, k, v, buckets, options)
    if stage == "responses":
        return _responses(q, k, v, buckets, options)
    prompts = _prompts(q[:, :first], k[:, :first], v[:, :first], buckets, options)
    return torch.cat([prompts, _responses(q[:, first:], k, v, buckets, options)], 1)


def _prompts(q: Tensor, k: Tensor, v: Tensor, buckets: Buckets, options: AttentionOptions) -> Tensor:
    """Attend from the prompts' tokens; all tensors (k, prompts' tokens, H, c)."""

    def within(group: AttentionGroup) -> Tensor:
        padded = group.padded_prompts
        causal = options.window is None and not options.special  # PyTorch's kernels need no mask
        mask = None if causal else group.mask(q.dtype, "prompts", q.shape[0], options.window)
        return padded.unpad(_attention(padded.pad(q), padded.pad(k), padded.pad(v), mask, options), q.shape[0])

    return _in_order([within(group) for group in buckets.groups], buckets.order["prompts"])


def _responses(q: Tensor, k: Tensor, v: Tensor, buckets: Buckets, options: AttentionOptions) -> Tensor:
    """Attend from the responses' tokens to all tokens."""

    def within(group: AttentionGroup) -> Tensor:
        padded, keys = group.padded_responses, group.padded_keys
        mask = group.mask(q.dtype, "responses", q.shape[0], options.window)
        return padded.unpad(_attention(padded.pad(q), keys.pad(k), keys.pad(v), mask, options), q.shape[0])

    return _in_order([within(group) for group in buckets.groups], buckets.order["responses"])


def _last(q: Tensor, k: Tensor, v: Tensor, buckets: Buckets, options: AttentionOptions) -> Tensor:
    """Attend from the responses' last tokens (k, N, H, c) to all tokens."""

    def within(group: AttentionGroup) -> Tensor:
        rows, padded = q[:, group.rows], group.padded_keys
        mask = group.mask(q.dtype, "last", q.shape[0], options.window)
        states = _attention(rows.flatten(0, 1)[:, None], padded.pad(k), padded.pad(v), mask, options)
        return states.reshape(*rows.shape[:-1], -1)

    return _in_order([within(group) for group in buckets.groups], buckets.order["last"])


def _in_order(parts: list[Tensor], order: Tensor | None) -> Tensor:
    """Concatenate the groups' results and restore the order of the packing."""
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return joined if order is None else joined.index_select(1, order)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    """Attend within padded rows (rows, tokens, H, c); causal if the mask is None."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if mask is not None and (options.special or (q.dtype == torch.bfloat16 and q.device.type == "cpu")):
        return _products(q, k, v, mask, options).transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    arguments = {"dropout_p": options.dropout, "scale": options.scale, "enable_gqa": grouped}
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, **arguments).transpose(1, 2)


def attend_unpacked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    """Attend with capped logits or sinks within padded sequences (B, H, T, c), which PyTorch's kernels cannot."""
    shape = (len(q), 1, q.shape[2], k.shape[2])
    if mask is None:  # causal, as in `sdpa_attention_forward`
        mask = torch.ones(shape[2:], dtype=torch.bool, device=q.device).tril(shape[3] - shape[2])
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, torch.finfo(q.dtype).min)
    return _products(q, k, v, mask.expand(shape), options).transpose(1, 2)


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: AttentionOptions) -> Tensor:
    """Attend by plain matrix products, a block of rows at a time.

    On a CPU in bfloat16 with a mask this takes half the time of `scaled_dot_product_attention`, which also has neither
    capped logits nor sinks.
    """
    q = q * (q.shape[-1] ** -0.5 if options.scale is None else options.scale)
    rows = max(1, _BLOCK // (q.shape[1] * mask[0].numel()))
    parts = zip(q.split(rows), k.split(rows), v.split(rows), mask.split(rows), strict=True)
    return torch.cat([_product(*part, options) for part in parts])


def _product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: AttentionOptions) -> Tensor:
    """Attend from queries (rows, H, R, c) to keys and values (rows, G, S, c), each shared by H / G heads.

    Args:
        mask: (rows, 1, R, S), additive.
    """
    shape, heads = q.shape, k.shape[1]
    logits = q.reshape(len(q), heads, -1, shape[-1]) @ k.transpose(2, 3)
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    logits = logits.view(len(q), heads, -1, *mask.shape[2:]) + mask[:, :, None]
    weights = dropout(_softmax(logits, options.sinks), options.dropout)
    return (weights.flatten(2, 3) @ v).reshape(*shape[:-1], v.shape[-1])


def _softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Return the weights of logits (rows, G, H / G, R, S); each head's sink takes a share that no value gets."""
    if sinks is None:
        return logits.softmax(-1)
    sink = sinks.to(logits.dtype).view(1, logits.shape[1], -1, 1, 1).expand(*logits.shape[:-1], 1)
    return torch.cat([logits, sink], -1).softmax(-1)[..., :-1]
