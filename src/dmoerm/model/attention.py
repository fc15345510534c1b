"""Attention of packed tokens: a token of a prompt attends to its prompt up to itself, a token of a response to its
whole prompt and its response up to itself.

Since no token of a prompt sees a response, one copy of the prompt serves all responses, and the result is the same as
for separate sequences. transformers' own layers find `attend` by its registered name; layers.py hands them an
`Attention`.

There are two forms, of which `attention_form` chooses by the device:

    padded   on a CPU, or with dropout of the weights: PyTorch's kernels on padded rows with a dense mask (below)
    flex     on a GPU: FlexAttention on the packed row as it is (flex_attention.py)

Shapes: Q prompts, N responses, T tokens, R queries and S keys of a padded row, k experts, H query heads, G ≤ H heads of
keys and values, c head width.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import ConfigError
from . import flex_attention
from .packing import Outputs, Packing, PaddedRows, runs, to_device

ATTENTION = "dmoerm_packed"
"""The name under which transformers' layers find `attend`."""
FORM_VARIABLE = "DMOERM_ATTENTION"
"""The environment variable that overrides `attention_form`."""
_FORMS, _FLEX_DEVICES = ("padded", "flex"), ("cuda", "xpu")
# Bound on a group's padded attention area (queries × keys): factor times the real area, plus a constant.
_MAX_WASTE, _FREE_AREA = 1.25, 50_000
_BLOCK = 2_000_000  # attention weights in memory at once: as many as fit in a CPU's caches


def attention_form(device: torch.device) -> str:
    """Return the form of attention on a device: the fastest, or the value of DMOERM_ATTENTION.

    Raise `ConfigError` if the variable names no form.
    """
    form = os.environ.get(FORM_VARIABLE) or ("flex" if device.type in _FLEX_DEVICES else "padded")
    if form not in _FORMS:
        raise ConfigError(f"{FORM_VARIABLE} is {form!r}; use one of {', '.join(_FORMS)}, or unset it")
    return form


class Attention(NamedTuple):
    """Which tokens attend in one call of a layer, and to what; `attend` gets it through the layer's keyword arguments.

    The tokens in a call are all, the responses' or the responses' last ones; their keys are all T tokens.
    """

    packing: Packing
    form: str  # see `attention_form`
    queries: Outputs = "all"  # the tokens in the call
    window: int | Literal["own"] | None = (
        None  # the tokens that a token sees with itself; `own`: the layer's own window
    )
    keys: tuple[Tensor, Tensor] | None = None  # (k, G, tokens, c) of an earlier call: all for `last`, else the prompts'
    collected: list[tuple[Tensor, Tensor]] | None = None  # gets the call's keys and values; nothing is attended to


class Options(NamedTuple):
    """Attention options shared by both forms."""

    scale: float | None = None  # the factor of the logits; 1 / √c if None
    dropout: float = 0.0  # the probability with which a weight is set to 0
    softcap: float | None = None  # the bound c of capped logits, c · tanh(logits / c)
    sinks: Tensor | None = None  # (H,), the logits of attention sinks
    window: int | None = None  # see `Attention`

    @property
    def special(self) -> bool:
        """Whether `scaled_dot_product_attention` cannot compute it."""
        return self.softcap is not None or self.sinks is not None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: Attention | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention of packed tokens: transformers' attention interface.

    Args:
        query, key, value: (k, H, tokens, c) and (k, G, tokens, c).
        packed: which tokens attend; if None, sequences are padded, as in transformers.
        sliding_window, softcap, s_aux: the layer's attention window in tokens, and `Options.softcap` and `sinks`.

    Returns:
        (k, tokens, H, c), and None in place of attention weights.
    """
    options = Options(scaling, dropout, softcap, s_aux)
    if packed is None:
        if options.special:
            return _attend_unpacked(query, key, value, attention_mask, options), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    query, key = query.to(value.dtype), key.to(value.dtype)  # norms and rotary embeddings return float32 under autocast
    if packed.collected is not None:
        packed.collected.append((key, value))
        return query[..., : value.shape[-1]].transpose(1, 2), None  # a placeholder of the right shape
    if packed.keys is not None:
        these = (key, value)
        key, value = packed.keys
        if packed.queries != "last":
            key, value = (torch.cat(pair, 2) for pair in zip(packed.keys, these, strict=True))
    window = sliding_window if packed.window == "own" else packed.window
    if window is not None and packed.packing.longest <= window:
        window = None  # no text is longer
    if packed.form == "flex" and not dropout:
        mask = packed.packing.derived(flex_attention.BlockMasks).mask(packed.queries, window)
        return flex_attention.attend(query, key, value, mask, scaling, softcap, s_aux), None
    options = options._replace(window=window)
    return attend_padded(query, key, value, packed.packing, packed.queries, options), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


# --- on padded rows --------------------------------------------------------------------------------------------------


def attend_padded(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, queries: Outputs, options: Options
) -> Tensor:
    """Attend from some tokens' queries (k, H, queries, c) to all tokens (k, G, T, c); return (k, queries, H, c)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    buckets, first = packing.derived(Buckets), packing.prompt_tokens
    if queries != "all":
        return _attend_rows(q, k, v, *buckets.of(queries), options)
    prompts = _attend_rows(q[:, :first], k[:, :first], v[:, :first], *buckets.of("prompts"), options)
    return torch.cat([prompts, _attend_rows(q[:, first:], k, v, *buckets.of("responses"), options)], 1)


def _attend_rows(
    q: Tensor, k: Tensor, v: Tensor, groups: Sequence[RowGroup], order: Tensor | None, options: Options
) -> Tensor:
    """Attend within each group's rows, and restore the order of the packing; all tensors (k, tokens, heads, c)."""
    states = []
    for group in groups:
        # PyTorch's kernels need no mask where queries and keys are the same rows
        causal = group.queries is group.keys and options.window is None and not options.special
        mask = None if causal else group.mask(q.dtype, q.shape[0], options.window)
        rows = (group.queries.pad(q), group.keys.pad(k), group.keys.pad(v))
        queries, keys, values = (x.transpose(1, 2) for x in rows)
        # with gradients in bfloat16 on a CPU, products take half to three quarters of the time of PyTorch's kernel
        fast = q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad
        if mask is not None and (options.special or fast):
            padded = _products(queries, keys, values, mask, options)
        else:
            arguments = {"dropout_p": options.dropout, "scale": options.scale, "enable_gqa": q.shape[2] != k.shape[2]}
            padded = scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=mask is None, **arguments
            )
        states.append(group.queries.unpad(padded.transpose(1, 2), q.shape[0]))
    joined = states[0] if len(states) == 1 else torch.cat(states, 1)
    return joined if order is None else joined.index_select(1, order)


class RowGroup:
    """Padded rows of similar lengths: the tokens that attend, and the tokens to which they attend.

        queries (rows, R)   r r r ·        keys (rows, S)   p p p p r r r ·
                            r r r r                         p p p r r r r ·

    Args:
        starts: (rows,), the position of each row's first query among the row's keys.
    """

    def __init__(self, queries: PaddedRows, keys: PaddedRows, starts: Sequence[int], device: torch.device) -> None:
        self.queries, self.keys, self._starts, self._device = queries, keys, torch.tensor(starts), device
        self._masks: dict[tuple[torch.dtype, int, int | None], Tensor] = {}

    def mask(self, dtype: torch.dtype, k: int, window: int | None = None) -> Tensor:
        """Return the additive mask (k · rows, 1, R, S), made once for all layers: 0, or −inf at hidden keys.

        The rows of the k experts follow each other.
        """
        if (name := (dtype, k, window)) not in self._masks:
            keys = torch.arange(self.keys.width)
            positions = (self._starts[:, None] + torch.arange(self.queries.width))[:, :, None]
            hidden = keys > positions
            if window is not None:
                # the positions of padding may exceed the keys, of which at least one must stay visible
                hidden |= keys <= positions.clamp(max=self.keys.width - 1) - window
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)[:, None]
            self._masks[name] = mask.repeat(k, 1, 1, 1).to(self._device)
        return self._masks[name]


class Buckets:
    """The prompts of a packing with their responses in groups of similar lengths; see `Packing.derived`.

    Padding costs the product of a row's queries and keys. One group for all would pad every response to the longest
    one; a group per prompt would need a kernel launch each.
    """

    def __init__(self, packing: Packing) -> None:
        self._packing, self.groups = packing, _group_by_length(packing)  # the indices of each group's prompts
        self._responses = [[n for n, q in enumerate(packing.owner) if q in group] for group in map(set, self.groups)]
        self._made: dict[str, tuple[list[RowGroup], Tensor | None]] = {}

    @functools.cached_property
    def _keys(self) -> list[PaddedRows]:
        """Per group, a row for each response with its prompt's tokens and its own."""
        packing, device = self._packing, self._packing.device
        prompts, responses = runs(packing.prompts), runs(packing.responses, packing.prompt_tokens)
        total = packing.prompt_tokens + sum(packing.responses)
        rows = [[[*prompts[packing.owner[n]], *responses[n]] for n in group] for group in self._responses]
        return [PaddedRows(each, total, device) for each in rows]

    def of(self, queries: Literal["prompts", "responses", "last"]) -> tuple[list[RowGroup], Tensor | None]:
        """Return the groups' rows for some queries, and the permutation back to the order of the packing.

        The permutation is None if the orders are equal. Prompts attend to themselves, a row each.
        """
        if queries not in self._made:
            packing, made, order = self._packing, [], []
            ends = [start + n - 1 for start, n in zip(packing.starts, packing.responses, strict=True)]
            tokens, starts = {
                "prompts": (runs(packing.prompts), [0] * len(packing.prompts)),
                "responses": (runs(packing.responses), packing.starts),
                "last": ([range(n, n + 1) for n in range(len(ends))], ends),
            }[queries]
            total = sum(map(len, tokens))
            for i, members in enumerate(self.groups if queries == "prompts" else self._responses):
                chosen = [tokens[n] for n in members]
                order += [token for row in chosen for token in row]
                rows = PaddedRows(chosen, total, packing.device)
                keys = rows if queries == "prompts" else self._keys[i]
                made.append(RowGroup(rows, keys, [starts[n] for n in members], packing.device))
            back = None
            if order != list(range(len(order))):
                back = to_device(torch.tensor(order, dtype=torch.long).argsort(), packing.device)
            self._made[queries] = made, back
        return self._made[queries]


def _group_by_length(packing: Packing) -> list[list[int]]:
    """Group the prompts so that each group's padded attention area is within the bound."""
    areas: list[list[tuple[int, int]]] = [[] for _ in packing.prompts]  # queries and keys of each response's attention
    for q, n in zip(packing.owner, packing.responses, strict=True):
        areas[q].append((n, packing.prompts[q] + n))
    groups: list[list[int]] = []
    group: list[tuple[int, int]] = []
    for q in sorted(range(len(areas)), key=lambda q: max((k for _, k in areas[q]), default=0)):
        joined = [*group, *areas[q]]
        padded = len(joined) * max((r for r, _ in joined), default=0) * max((k for _, k in joined), default=0)
        if not groups or padded > _MAX_WASTE * sum(r * k for r, k in joined) + _FREE_AREA:
            groups.append([])
            joined = areas[q]
        groups[-1].append(q)
        group = joined
    return [sorted(prompts) for prompts in groups]


def _attend_unpacked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: Options) -> Tensor:
    """Attend with capped logits or sinks within padded sequences (B, H, T, c), which PyTorch's kernels cannot."""
    shape = (len(q), 1, q.shape[2], k.shape[2])
    if mask is None:  # causal, as in `sdpa_attention_forward`
        mask = torch.ones(shape[2:], dtype=torch.bool, device=q.device).tril(shape[3] - shape[2])
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, torch.finfo(q.dtype).min)
    return _products(q, k, v, mask.expand(shape), options).transpose(1, 2)


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: Options) -> Tensor:
    """Attend by plain matrix products, a block of rows at a time, also with capped logits and sinks."""
    q = q * (q.shape[-1] ** -0.5 if options.scale is None else options.scale)
    rows = max(1, _BLOCK // (q.shape[1] * mask[0].numel()))
    parts = zip(q.split(rows), k.split(rows), v.split(rows), mask.split(rows), strict=True)
    return torch.cat([_product(*part, options) for part in parts])


def _product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: Options) -> Tensor:
    """Attend from queries (rows, H, R, c) to keys and values (rows, G, S, c), each shared by H / G heads.

    The mask (rows, 1, R, S) is additive. Each head's sink takes a share of the weights that no value gets.
    """
    shape, heads = q.shape, k.shape[1]
    logits = q.reshape(len(q), heads, -1, shape[-1]) @ k.transpose(2, 3)
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    logits = logits.view(len(q), heads, -1, *mask.shape[2:]) + mask[:, :, None]
    if options.sinks is None:
        weights = logits.softmax(-1)
    else:
        sink = options.sinks.to(logits.dtype).view(1, heads, -1, 1, 1).expand(*logits.shape[:-1], 1)
        weights = torch.cat([logits, sink], -1).softmax(-1)[..., :-1]
    return (dropout(weights, options.dropout).flatten(2, 3) @ v).reshape(*shape[:-1], v.shape[-1])
