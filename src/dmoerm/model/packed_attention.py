"""One pass of packed tokens through a decoder's own layers, computing only the states that are asked for.

    every layer but the last    all tokens
    the last layer              keys and values of all tokens; queries, output projection and MLP of the outputs

Linear layers, norms and MLPs meet no padding, and each prompt once. `attend` alone knows who sees whom: a prompt's
token sees its prompt up to itself, a response's token sees its whole prompt and its response up to itself. The result
equals that of separate sequences. The layers are transformers' own code; they find `attend` by its name.

Shapes as in packing.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import BackboneError
from .packing import Packed, Packing

if TYPE_CHECKING:

    class Decoder(PreTrainedModel):
        """A decoder of the common layout; see `backbone.check_decoder`."""

        layers: nn.ModuleList
        norm: nn.Module
        embed_tokens: nn.Module | None
        rotary_emb: Any
else:
    Decoder = PreTrainedModel

ATTENTION = "dmoerm_packed"
"""The name under which transformers' layers find `attend`."""

_BLOCK = 2_000_000  # attention weights held at once: as many as a processor's caches take

_SdpaOptions = dict[str, Any]

Outputs = Literal["all", "responses", "last"]
"""Whose states a pass gives: all T tokens', those of the responses' tokens, or of the N responses' last tokens."""


def run(part: Decoder, inputs: Packed, outputs: Outputs = "all", num_experts: int = 1) -> Tensor:
    """Runs a trunk or branch over packed tokens. Gradients flow.

    Args:
        part: layers, and embeddings where the tokens are ids.
        outputs: whose states (k, …, d) are given.
        num_experts: k, where the part's linear layers hold k experts; the same tokens go through each.

    Raises:
        BackboneError: the backbone attends to a sliding window, and a text is longer than that.
    """
    with computing(part):
        return _run(part, inputs, outputs, num_experts)


def computing(part: PreTrainedModel) -> torch.autocast:
    """The context in which a part's layers run: autocast to its compute dtype, `config.dtype`.

    Weights that were trained are float32 and weights that were not have the compute dtype. Training, validation and
    scoring run in the same context, so that they give the same rewards.
    """
    dtype = part.config.dtype
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(part.device.type, dtype if half else torch.bfloat16, enabled=half)


def _run(part: Decoder, inputs: Packed, outputs: Outputs, num_experts: int) -> Tensor:
    tokens, packing = inputs
    states = tokens if tokens.is_floating_point() else part.embed_tokens(tokens)  # pyright: ignore
    states = states[None].expand(num_experts, -1, -1)
    rotary = part.rotary_emb(states, position_ids=packing.positions[None])
    state = _Pass(packing, part, rotary)
    for layer in part.layers[:-1]:  # pyright: ignore[reportGeneralTypeIssues]
        states = state.through(layer, states)
    return part.norm(state.through_last(part.layers[-1], states, outputs))


class _Pass:
    """What the layers of one pass need to know, and the keys and values kept for the last of them."""

    def __init__(self, packing: Packing, part: Decoder, rotary: Sequence[Tensor]) -> None:
        self.packing, self.rotary = packing, rotary
        self.stage: Literal["all", "keys", "responses", "last"] = "all"
        self.kept: tuple[Tensor, Tensor] | None = None

    def through(self, layer: nn.Module, states: Tensor, places: Any = slice(None), stage: Any = "all") -> Tensor:
        """The layer's output (k, …, d) for the tokens at `places`."""
        self.stage = stage
        rotary = tuple(part[:, places] for part in self.rotary)
        positions = self.packing.positions[None, places]
        return layer(
            states[:, places], attention_mask=None, position_ids=positions, position_embeddings=rotary, packed=self
        )

    def through_last(self, layer: nn.Module, states: Tensor, outputs: Outputs) -> Tensor:
        """The last layer's output for the tokens asked for alone."""
        first = self.packing.prompt_tokens
        if outputs == "all":
            return self.through(layer, states)
        if outputs == "responses":
            self.through(_keys_only(layer), states, slice(None, first), "keys")
            return self.through(layer, states, slice(first, None), outputs)
        self.through(_keys_only(layer), states, stage="keys")
        return self.through(layer, states, self.packing.last, outputs)


def _keys_only(layer: Any) -> nn.Module:
    """The layer without what keys and values do not need: queries, output projection, MLP."""
    attention = layer.self_attn
    if not all(hasattr(attention, name) for name in ("q_proj", "o_proj")) or not hasattr(layer, "mlp"):
        return layer  # such a layer computes more than is needed, to the same result
    queries = _Zeros(attention.config.num_attention_heads * attention.head_dim)
    output = _Zeros(attention.config.hidden_size)
    return _with(layer, mlp=output, self_attn=_with(attention, q_proj=queries, o_proj=output))


def _with(module: nn.Module, **children: nn.Module) -> nn.Module:
    """The same module, weights and all, but for some of its children."""
    changed = copy.copy(module)
    changed._modules = {**module._modules, **children}
    return changed


class _Zeros(nn.Module):
    """A linear layer's place, at no cost."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(*x.shape[:-1], self.width)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: _Pass | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed tokens, (k, H, tokens, c) → (k, tokens, H, c); without `packed`, transformers' own."""
    if packed is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    packing = packed.packing
    if kwargs.get("softcap"):
        raise BackboneError("the backbone caps its attention's logits, which packed tokens do not; use another")
    if sliding_window and packing.longest > sliding_window:
        raise BackboneError(
            f"prompt and response are {packing.longest} tokens, more than the backbone's attention window of "
            f"{sliding_window}; set encoding.max_length to at most that"
        )
    options = {"scale": scaling, "dropout_p": dropout}
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, norms and rotations give float32
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))  # (k, tokens, H, c)
    if packed.stage == "keys":
        packed.kept = (k, v)
        return q, None
    if packed.stage == "last":
        assert packed.kept is not None
        return _last(q, *packed.kept, packing, options), None
    if packed.stage == "responses":
        assert packed.kept is not None
        k, v = torch.cat([packed.kept[0], k], 1), torch.cat([packed.kept[1], v], 1)
        return _responses(q, k, v, packing, options), None
    first = packing.prompt_tokens
    prompts = _prompts(q[:, :first], k[:, :first], v[:, :first], packing, options)
    return torch.cat([prompts, _responses(q[:, first:], k, v, packing, options)], 1), None


def _prompts(q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: _SdpaOptions) -> Tensor:
    """Queries, keys and values of the prompts' tokens."""
    padded = [group.padded_prompts for group in packing.groups]
    found = [g.unpad(_attention(g.pad(q), g.pad(k), g.pad(v), None, options), q.shape[0]) for g in padded]
    return _in_order(found, packing.order["prompts"])


def _responses(q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: _SdpaOptions) -> Tensor:
    """Queries of the responses' tokens; keys and values of all tokens."""
    found = []
    for group in packing.groups:
        padded, keys = group.padded_responses, group.padded_keys
        mask = group.mask(q.dtype, last=False, k=q.shape[0])
        found.append(padded.unpad(_attention(padded.pad(q), keys.pad(k), keys.pad(v), mask, options), q.shape[0]))
    return _in_order(found, packing.order["responses"])


def _last(q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: _SdpaOptions) -> Tensor:
    """Queries of the responses' last tokens (k, N, H, c); keys and values of all tokens."""
    found = []
    for group in packing.groups:
        rows = q[:, group.rows]
        mask = group.mask(q.dtype, last=True, k=q.shape[0])
        padded = group.padded_keys
        found.append(
            _attention(rows.flatten(0, 1)[:, None], padded.pad(k), padded.pad(v), mask, options).reshape(rows.shape)
        )
    return _in_order(found, packing.order["last"])


def _in_order(parts: list[Tensor], order: Tensor | None) -> Tensor:
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return joined if order is None else joined.index_select(1, order)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: _SdpaOptions) -> Tensor:
    """(rows, tokens, H, c) → the same; causal where there is no mask."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if mask is not None and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return _products(q, k, v, mask, **options).transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    found = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped, **options)
    return found.transpose(1, 2)


def _products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None, dropout_p: float = 0.0
) -> Tensor:
    """The same by plain products, some rows at a time: half the time of PyTorch's kernel for bfloat16 on a CPU."""
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    rows = max(1, _BLOCK // (q.shape[1] * mask[0].numel()))
    parts = zip(*(x.split(rows) for x in (q, k, v, mask)), strict=True)
    return torch.cat([_product(*part, dropout_p=dropout_p) for part in parts])


def _product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
    """Queries (rows, H, R, c); keys and values (rows, G, S, c), each shared by H / G heads; mask (rows, 1, R, S)."""
    shape, heads = q.shape, k.shape[1]
    logits = q.reshape(len(q), heads, -1, shape[-1]) @ k.transpose(2, 3)
    logits = logits.view(len(q), heads, -1, *mask.shape[2:]) + mask[:, :, None]
    weights = dropout(logits.softmax(-1), dropout_p)
    return (weights.flatten(2, 3) @ v).reshape(shape)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
