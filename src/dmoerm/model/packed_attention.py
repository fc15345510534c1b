"""A pass of packed tokens through a decoder's own layers that computes only the requested states.

    every layer but the last    all tokens
    the last layer              keys and values of all tokens; queries, output projection and MLP of the outputs only

The layers are transformers' own code and find `attend` by its registered name. Everything in a layer except attention
treats tokens independently, so it runs on the packed row as it is. `attend` alone separates sequences: a token of a
prompt attends to its prompt up to itself, a token of a response to its whole prompt and its response up to itself.
Since no token of a prompt sees a response, one copy of the prompt serves all responses, and the result equals that of
separate sequences.

The last layer's states are needed only where they are pooled, but its keys and values are needed for all tokens. A
layer returns no keys and values, so `_Pass` runs a copy of the last layer without its other parts first and keeps them.

There are two forms of attention, of which `attention_form` chooses by the device:

    padded   padded_attention.py   on a CPU, or with dropout of the weights
    flex     flex_attention.py     on a GPU

Shapes as in packing.py.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import BackboneError, ConfigError
from . import flex_attention, padded_attention
from .attention_options import AttentionOptions, Stage
from .families import is_packed
from .packing import Packed, Packing
from .unpacked import Outputs, run_unpacked

if TYPE_CHECKING:

    class Decoder(PreTrainedModel):
        """A decoder of the common layout; see `families.is_packed`."""

        layers: nn.ModuleList
        norm: nn.Module
        embed_tokens: nn.Module | None
        rotary_emb: Any
else:
    Decoder = PreTrainedModel

ATTENTION = "dmoerm_packed"
"""The name under which transformers' layers find `attend`."""

SLIDING = "sliding_attention"
_MLPS_WITH_ROUTES = ("GptOssMLP",)

FORM_VARIABLE = "DMOERM_ATTENTION"
"""The environment variable that overrides `attention_form`."""

_FORMS = {"padded": padded_attention.attend, "flex": flex_attention.attend}
_FLEX_DEVICES = ("cuda", "xpu")


def attention_form(device: torch.device) -> str:
    """Return the form in which packed tokens attend on a device: that of DMOERM_ATTENTION, or the fastest one.

    Raises:
        ConfigError: the variable names no form.
    """
    form = os.environ.get(FORM_VARIABLE) or ("flex" if device.type in _FLEX_DEVICES else "padded")
    if form not in _FORMS:
        raise ConfigError(f"{FORM_VARIABLE} is {form!r}; use one of {', '.join(_FORMS)}, or unset it")
    return form


def run(part: Decoder, inputs: Packed, outputs: Outputs = "all", num_experts: int = 1) -> Tensor:
    """Run a trunk or branch over packed tokens, by its own forward if `families.is_packed` is false. Gradients flow.

    Args:
        part: the layers, with embeddings if the tokens are ids.
        outputs: the states to return.
        num_experts: k, the number of experts in the part's linear layers; the same tokens pass through each.

    Returns:
        States (k, …, d).
    """
    with computing(part):
        if not is_packed(part.config):
            return run_unpacked(part, inputs, outputs, num_experts)
        return _run(part, inputs, outputs, num_experts)


def computing(part: PreTrainedModel) -> torch.autocast:
    """Return the context in which a part's layers run: autocast to its compute dtype, `config.dtype`.

    Trained weights are float32, all others have the compute dtype. Training, validation and scoring run in this
    context, so they compute the same rewards.
    """
    dtype = part.config.dtype
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(part.device.type, dtype if half else torch.bfloat16, enabled=half)


def recompute_layers(part: PreTrainedModel, *, offload: bool = False) -> None:
    """Let each layer keep only its input in training; the backward pass runs it again (arXiv 1604.06174).

    Gradients are the same. In eval mode nothing changes.

    Args:
        offload: keep the inputs in the CPU's memory, pinned if there is CUDA, until the backward pass reads them.

    Raises:
        BackboneError: transformers does not support this for the backbone.
    """
    layers = [module for module in part.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        kind = part.config.model_type
        raise BackboneError(f"gradient_checkpointing: a backbone of type {kind!r} does not support it; set it to false")
    for layer in layers:
        layer._gradient_checkpointing_func = functools.partial(_recomputed, offload)  # pyright: ignore
        layer.gradient_checkpointing = True
    part.config.use_cache = False  # a layer that runs twice would append its keys and values twice


def _recomputed(offload: bool, layer: Any, *inputs: Any, **options: Any) -> Any:
    with save_on_cpu(pin_memory=torch.cuda.is_available()) if offload else contextlib.nullcontext():
        return checkpoint(layer, *inputs, use_reentrant=False, **options)


def _run(part: Decoder, inputs: Packed, outputs: Outputs, num_experts: int) -> Tensor:
    tokens, packing = inputs
    states = tokens if tokens.is_floating_point() else part.embed_tokens(tokens)  # pyright: ignore
    states = states[None].expand(num_experts, -1, -1)
    state = _Pass(packing, part, states)
    for layer in part.layers[:-1]:  # pyright: ignore[reportGeneralTypeIssues]
        states = state.through(layer, states)
        state.index += 1
    return part.norm(state.through_last(part.layers[-1], states, outputs))


def _rotary(part: Decoder, states: Tensor, positions: Tensor) -> dict[str | None, Sequence[Tensor]]:
    """Return the rotary embeddings by layer type; under the key None if all layers have the same."""
    if "layer_type" not in inspect.signature(part.rotary_emb.forward).parameters:
        return {None: part.rotary_emb(states, position_ids=positions)}
    return {name: part.rotary_emb(states, positions, name) for name in dict.fromkeys(part.config.layer_types)}


class _Pass:
    """The state of one pass that its layers hand on to `attend`.

    Attributes:
        index: the number of the running layer in its part.
        stage: which queries the running layer has: `all` tokens, none (`keys`: keep the keys and values), the
            `responses`' tokens or their `last` tokens.
        kept: keys and values of the last layer, (k, H, tokens, c) each, from its stage `keys`.
        form: the form of attention.
    """

    def __init__(self, packing: Packing, part: Decoder, states: Tensor) -> None:
        self.packing, self.index = packing, 0
        self._layer_types: Sequence[str] | None = getattr(part.config, "layer_types", None)
        self._window: int | None = getattr(part.config, "sliding_window", None)
        self._rotary = _rotary(part, states, packing.positions[None])
        self.stage: Stage | Literal["keys"] = "all"
        self.form = attention_form(packing.device)
        self.kept: tuple[Tensor, Tensor] | None = None

    @property
    def _layer_type(self) -> str | None:
        return self._layer_types[self.index] if self._layer_types else None

    def window(self, given: int | None) -> int | None:
        """Return the running layer's attention window in tokens; None: no text is longer than it.

        Args:
            given: the window that the layer itself names, which holds if the backbone has no layer types.
        """
        window = given if self._layer_type is None else self._window if self._layer_type == SLIDING else None
        return window if window and self.packing.longest > window else None

    def through(self, layer: nn.Module, states: Tensor, tokens: Any = slice(None), stage: Any = "all") -> Tensor:
        """Return the layer's output (k, …, d) for some tokens, given as a slice or indices."""
        call = copy.copy(self)  # the layer's own: a backward pass may run the layer again (`recompute_layers`)
        call.stage = stage
        rotary: Any = self._rotary[None if None in self._rotary else self._layer_type]
        output = layer(
            states[:, tokens],
            attention_mask=None,
            position_ids=self.packing.positions[None, tokens],
            position_embeddings=rotary[:, tokens]
            if isinstance(rotary, Tensor)
            else tuple(x[:, tokens] for x in rotary),
            packed=call,
        )
        self.kept = call.kept
        return output[0] if isinstance(output, tuple) else output

    def through_last(self, layer: nn.Module, states: Tensor, outputs: Outputs) -> Tensor:
        """Return the last layer's output (k, …, d) for the requested tokens only."""
        first = self.packing.prompt_tokens
        if outputs == "all":
            return self.through(layer, states)
        if outputs == "responses":
            self.through(_keys_only(layer), states, slice(None, first), "keys")
            return self.through(layer, states, slice(first, None), outputs)
        self.through(_keys_only(layer), states, stage="keys")
        return self.through(layer, states, self.packing.last, outputs)


def _keys_only(layer: Any) -> nn.Module:
    """Return the layer without queries, output projection and MLP, which its keys and values do not need."""
    attention: Any = getattr(layer, "self_attn", None)
    parts = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
    if not all(hasattr(part, "out_features") for part in parts) or not _has_plain_mlp(layer):
        return layer  # the whole layer computes the same keys and values, at a higher cost
    queries, output = (_Zeros(part.out_features) for part in parts)  # pyright: ignore[reportOptionalMemberAccess]
    return _with(layer, mlp=output, self_attn=_with(attention, q_proj=queries, o_proj=output))


def _has_plain_mlp(layer: Any) -> bool:
    """Return whether the layer has an MLP that returns states only; some with routed experts return more."""
    return hasattr(layer, "mlp") and layer.mlp.__class__.__name__ not in _MLPS_WITH_ROUTES


def _with(module: nn.Module, **children: nn.Module) -> nn.Module:
    """Return a shallow copy of the module, sharing its weights, with some children replaced."""
    changed = copy.copy(module)
    changed._modules = {**module._modules, **children}
    return changed


class _Zeros(nn.Module):
    """A substitute for a linear layer whose output is not used."""

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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention of packed tokens: transformers' attention interface.

    Args:
        query, key, value: (k, H, tokens, c); keys and values may have fewer heads.
        packed: the state of the pass; None: run on padded sequences as transformers does.
        sliding_window: the layer's attention window in tokens.
        softcap: the bound c of capped logits, c · tanh(logits / c).
        s_aux: (H,), the logits of attention sinks.

    Returns:
        (k, tokens, H, c), and None in place of attention weights.
    """
    options = AttentionOptions(scaling, dropout, None, softcap, s_aux)
    if packed is None:
        if options.special:
            return padded_attention.attend_unpacked(query, key, value, attention_mask, options), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    query, key = query.to(value.dtype), key.to(value.dtype)  # norms and rotary embeddings return float32 under autocast
    if packed.stage == "keys":
        packed.kept = (key, value)
        return query[..., : value.shape[-1]].transpose(1, 2), None
    if packed.kept is not None and packed.stage == "last":
        key, value = packed.kept
    if packed.kept is not None and packed.stage == "responses":
        key, value = (torch.cat([kept, x], 2) for kept, x in zip(packed.kept, (key, value), strict=True))
    form = _FORMS["padded" if dropout else packed.form]
    options = options._replace(window=packed.window(sliding_window))
    return form(query, key, value, packed.packing, packed.stage, options), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
