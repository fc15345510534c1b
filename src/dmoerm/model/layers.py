"""The layers of a decoder: split into trunk and branch, and run on packed tokens.

    ids (T,) ──trunk: layers[0:b]──▶ hidden (T, d) ──branch: layers[b:L], norm──▶ states (k, …, d)

The trunk is shared, frozen and run once; each task may have a branch of its own. Both are models of the backbone's own
class with fewer layers, and no layer code is rewritten. With `branch_layer` 0 the model has no trunk, and the branch
holds the embeddings and reads the ids. A backbone that cannot be split (families.py) is one such branch.

Everything in a layer except attention treats tokens independently, so it runs on the packed row as it is (attention.py
separates the texts). The last layer's states are needed only where they are pooled, but its keys and values are needed
for all tokens:

    every layer but the last    all tokens
    the last layer              keys and values for all tokens; queries, output projection and MLP for pooled ones

Shapes as in packing.py; b the branch layer, L layers.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import BackboneError
from .attention import ATTENTION, Attention, attention_form
from .families import is_packed
from .packing import Outputs, Packed, Packing, PaddedRows, runs, to_device

if TYPE_CHECKING:

    class Decoder(PreTrainedModel):
        """A decoder of the common layout; see `families.is_packed`."""

        layers: nn.ModuleList
        norm: nn.Module
        embed_tokens: nn.Module | None
        rotary_emb: Any
else:
    Decoder = PreTrainedModel

HINT = "`dmoerm models check` says how a backbone runs"
_MLPS_WITH_ROUTES = ("GptOssMLP",)


# --- trunk and branch ------------------------------------------------------------------------------------------------


def split_layers(model: Decoder, layer: int) -> tuple[Decoder | None, Decoder]:
    """Split a decoder into trunk and branch, which share its weights; the trunk is None if `layer` is 0."""
    if layer == 0:
        return None, model
    return slice_layers(model, 0, layer, norm=False), slice_layers(model, layer, len(model.layers))


def join(trunk: Decoder | None, branch: Decoder) -> Decoder:
    """Join trunk and branch into a whole decoder, onto which PEFT and other tools load an expert."""
    if trunk is None:
        return branch
    config = copy.deepcopy(trunk.config)
    if getattr(config, "layer_types", None):
        config.layer_types = [*trunk.config.layer_types, *branch.config.layer_types]
    whole = empty_part(config, len(trunk.layers) + len(branch.layers))
    whole.layers = _numbered([*trunk.layers, *branch.layers], whole.config)
    whole.embed_tokens, whole.norm, whole.rotary_emb = trunk.embed_tokens, branch.norm, trunk.rotary_emb
    return whole.eval()


def slice_layers(model: Decoder, start: int, stop: int, *, norm: bool = True) -> Decoder:
    """Return a model of the same class with layers [start, stop) that shares the model's weights.

    It has the embeddings if it starts at layer 0, and the final norm if `norm` is true.
    """
    config = _with_layers(model.config, stop - start, start)
    shared = [*model.children(), *model.parameters(recurse=False)]
    part = copy.deepcopy(model, {id(model.config): config} | {id(each): each for each in shared})
    part.layers = _numbered(list(model.layers)[start:stop], part.config)
    part.embed_tokens = model.embed_tokens if start == 0 else None
    part.norm = model.norm if norm else nn.Identity()
    part.rotary_emb = model.rotary_emb
    return part.eval()


def empty_part(config: Any, layers: int) -> Decoder:
    """Build a model of the config's class with `layers` layers; its weights are on the meta device.

    Raises:
        BackboneError: transformers does not compute a buffer that no file stores.
    """
    packed = is_packed(config)
    config = _with_layers(config, layers) if packed else copy.deepcopy(config)
    with torch.device("meta"):
        part = AutoModel.from_config(config, **{"attn_implementation": ATTENTION} if packed else {})
    with torch.device("cpu"):  # even inside a caller's meta context: these buffers are computed, never loaded
        if packed:
            part.rotary_emb = type(part.rotary_emb)(config)
        for module in part.modules():
            buffers = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
            unset = {name: buffer for name, buffer in buffers.items() if buffer is not None and buffer.is_meta}
            for name, buffer in unset.items():  # nan shows which ones transformers leaves out
                filled = torch.full(buffer.shape, float("nan") if buffer.is_floating_point() else 0)
                module._buffers[name] = filled.to(buffer.dtype)
            if unset:
                part._init_weights(module)
            for name in unset:
                if (computed := module._buffers[name]) is not None and computed.isnan().any():
                    kind = f"a backbone of type {config.model_type!r}"
                    raise BackboneError(f"{kind} computes {name}, which is not saved; {HINT}")
    return part


def _with_layers(config: Any, layers: int, start: int = 0) -> Any:
    """Return a copy of the configuration for `layers` layers from `start` on."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[start : start + layers]
    return config


def _numbered(layers: list[nn.Module], config: Any) -> nn.ModuleList:
    """Copy the layers, sharing weights, with numbers from 0, by which a layer finds its entry in a key/value cache.

    The copies refer to `config`.
    """
    copies = []
    for index, layer in enumerate(layers):
        shared: dict[int, Any] = {id(p): p for p in layer.parameters()}
        shared |= {id(m.config): config for m in layer.modules() if hasattr(m, "config")}
        copies.append(copy.deepcopy(layer, shared))
        for module in copies[-1].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # pyright: ignore[reportArgumentType]
    return nn.ModuleList(copies)


# --- a pass ----------------------------------------------------------------------------------------------------------


def run(part: Decoder, inputs: Packed, outputs: Outputs = "all", num_experts: int = 1) -> Tensor:
    """Run a trunk or branch over packed tokens; return the states (k, …, d) of the `outputs`. Gradients flow.

    The part has embeddings if the tokens are ids. It runs by its own forward if `families.is_packed` is false.

    Args:
        num_experts: k, the number of experts in the part's linear layers; the same tokens pass through each.
    """
    with computing(part):
        if not is_packed(part.config):
            return _run_whole(part, inputs, outputs, num_experts)
        tokens, packing = inputs
        states = tokens if tokens.is_floating_point() else part.embed_tokens(tokens)  # pyright: ignore
        states = states[None].expand(num_experts, -1, -1)
        layers: list[Any] = list(part.layers)
        positions, rotary = packing.positions[None], dict[str | None, Any]()
        if "layer_type" in inspect.signature(part.rotary_emb.forward).parameters:
            rotary |= {name: part.rotary_emb(states, positions, name) for name in set(part.config.layer_types)}
        else:
            rotary[None] = part.rotary_emb(states, position_ids=positions)
        this = _Pass(part, packing, rotary, attention_form(packing.device))
        for index, layer in enumerate(layers[:-1]):
            states = this.through(index, layer, states)
        return part.norm(this.through_last(len(layers) - 1, layers[-1], states, outputs))


def computing(part: PreTrainedModel) -> torch.autocast:
    """Return the context in which a part's layers run: autocast to its compute dtype, `config.dtype`.

    Trained weights are float32, all others have the compute dtype. Training, validation and scoring run in this
    context, so they compute the same rewards.
    """
    dtype = part.config.dtype
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(part.device.type, dtype if half else torch.bfloat16, enabled=half)


class _Pass(NamedTuple):
    """What all layers of a pass share."""

    part: Decoder
    packing: Packing
    rotary: Mapping[str | None, Any]  # layer type → rotary embeddings; the only key is None if all share them
    form: str  # see `attention_form`

    def through(
        self, index: int, layer: nn.Module, states: Tensor, tokens: Any = slice(None), **attention: Any
    ) -> Tensor:
        """Return the layer's output (k, …, d) for some tokens, given as a slice or indices; see also `Attention`."""
        config: Any = self.part.config
        types = getattr(config, "layer_types", None)
        kind = types[index] if types else None
        window = "own" if kind is None else config.sliding_window if kind == "sliding_attention" else None
        rotary = self.rotary[None if None in self.rotary else kind]
        chosen = rotary[:, tokens] if isinstance(rotary, Tensor) else tuple(x[:, tokens] for x in rotary)
        output = layer(
            states[:, tokens],
            attention_mask=None,
            position_ids=self.packing.positions[None, tokens],
            position_embeddings=chosen,
            packed=Attention(self.packing, self.form, window=window, **attention),
        )
        return output[0] if isinstance(output, tuple) else output

    def through_last(self, index: int, layer: nn.Module, states: Tensor, outputs: Outputs) -> Tensor:
        """Return the last layer's output (k, …, d) for the requested tokens only.

        A layer returns no keys and values: a copy of it without its other parts runs first, and `attend` collects them.
        For `responses` these are the prompts', since the responses' tokens run through the whole layer anyway.
        """
        if outputs == "all":
            return self.through(index, layer, states)
        first = self.packing.prompt_tokens
        read, written = slice(None), self.packing.last
        if outputs == "responses":
            read, written = slice(first), slice(first, None)
        collected: list[tuple[Tensor, Tensor]] = []
        self.through(index, _keys_only(layer), states, read, collected=collected)
        return self.through(index, layer, states, written, queries=outputs, keys=collected[0])


def _keys_only(layer: Any) -> nn.Module:
    """Return the layer without queries, output projection and MLP, which its keys and values do not need.

    A layer with other parts is returned whole: it computes the same keys and values, at a higher cost.
    """

    def changed(module: nn.Module, **children: nn.Module) -> nn.Module:  # a shallow copy that shares the weights
        other = copy.copy(module)
        other._modules = {**module._modules, **children}
        return other

    attention: Any = getattr(layer, "self_attn", None)
    parts = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
    plain = hasattr(layer, "mlp") and type(layer.mlp).__name__ not in _MLPS_WITH_ROUTES
    if not plain or not all(hasattr(part, "out_features") for part in parts):
        return layer
    queries, output = (_Zeros(part.out_features) for part in parts)  # pyright: ignore[reportOptionalMemberAccess]
    return changed(layer, mlp=output, self_attn=changed(attention, q_proj=queries, o_proj=output))


class _Zeros(nn.Module):
    """A substitute for a linear layer whose output is not used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(*x.shape[:-1], self.width)


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


# --- a model's own forward -------------------------------------------------------------------------------------------


def _run_whole(model: PreTrainedModel, inputs: Packed, outputs: Outputs, num_experts: int) -> Tensor:
    """Run a model whose layers cannot run on packed tokens by its own forward on padded rows.

    Each response is a row with its prompt, which is computed once per response. A prompt's states are those of the
    prompt alone, as in a packed pass, also if the model is an encoder, whose tokens see later ones.
    """
    tokens, packing = inputs

    def states_of(rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the states (k, tokens of all rows, d) of rows, given as indices of their tokens."""
        padded = PaddedRows(rows, len(tokens), tokens.device)
        ids = padded.pad(tokens[None]).repeat(num_experts, 1)
        lengths = to_device(torch.tensor(list(map(len, rows))), tokens.device)
        mask = (torch.arange(padded.width, device=tokens.device) < lengths[:, None]).repeat(num_experts, 1)
        return padded.unpad(whole_forward(model, ids, mask), num_experts)

    prompts, responses = runs(packing.prompts), runs(packing.responses, packing.prompt_tokens)
    rows = [[*prompts[q], *response] for q, response in zip(packing.owner, responses, strict=True)]
    ranges = runs(list(map(len, rows)))
    if outputs == "last":
        kept = [indices[-1] for indices in ranges]
    else:
        kept = [i for indices, start in zip(ranges, packing.starts, strict=True) for i in indices[start:]]
    states = states_of(rows)[:, to_device(torch.tensor(kept), tokens.device)]
    return torch.cat([states_of(prompts), states], 1) if outputs == "all" else states


def whole_forward(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last states (Q, P, d) of right-padded ids (Q, P), where the mask is 1, or true, at tokens.

    It runs without the key-value cache, which models fill by default.
    """
    options = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
    return model(input_ids=ids, attention_mask=mask.long(), **options).last_hidden_state
