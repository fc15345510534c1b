"""A decoder split in two: the trunk (shared, frozen, run once) and the branch (one per task).

    ids (B, T) ──trunk: layers[0:b]──▶ hidden (B, T, d) ──branch: layers[b:L], norm──▶ (B, T, d)

Both parts are models of the backbone's own class with fewer layers, so no layer code is rewritten. With `branch_layer`
0 the model has no trunk, and the branch holds the embeddings and reads the ids. A backbone that cannot be split (see
families.py) is one such branch.

Shapes: B sequences, T tokens, d hidden width, b the branch layer, L layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ..errors import BackboneError
from .families import is_packed
from .packed_attention import ATTENTION, Decoder

HINT = "`dmoerm models check` says how a backbone runs"


def split_layers(model: Decoder, layer: int) -> tuple[Decoder | None, Decoder]:
    """Split a decoder into trunk and branch, which share its weights; the trunk is None if `layer` is 0."""
    if layer == 0:
        return None, model
    trunk = slice_layers(model, 0, layer, embed=True, norm=False)
    return trunk, slice_layers(model, layer, len(model.layers), embed=False, norm=True)


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


def slice_layers(model: Decoder, start: int, stop: int, *, embed: bool, norm: bool) -> Decoder:
    """Return a model of the same class with layers [start, stop) that shares the model's weights.

    Args:
        embed: include the embeddings.
        norm: include the final norm.
    """
    config = _with_layers(model.config, stop - start, start)
    shared = [*model.children(), *model.parameters(recurse=False)]
    part = copy.deepcopy(model, {id(model.config): config} | {id(each): each for each in shared})
    part.layers = _numbered(list(model.layers)[start:stop], part.config)
    part.embed_tokens = model.embed_tokens if embed else None
    part.norm = model.norm if norm else nn.Identity()
    part.rotary_emb = model.rotary_emb
    return part.eval()


def empty_part(config: Any, layers: int) -> Decoder:
    """Build a model of the config's class with `layers` layers; its weights are on the meta device."""
    packed = is_packed(config)
    config = _with_layers(config, layers) if packed else copy.deepcopy(config)
    with torch.device("meta"):
        part = AutoModel.from_config(config, **{"attn_implementation": ATTENTION} if packed else {})
    with torch.device("cpu"):  # even inside a caller's meta context: these buffers are computed, never loaded
        if packed:
            part.rotary_emb = type(part.rotary_emb)(config)
        _compute_buffers(part)
    return part


def _with_layers(config: Any, layers: int, start: int = 0) -> Any:
    """Return a copy of the configuration for `layers` layers from `start` on."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[start : start + layers]
    return config


def empty_branch(config: Any, layer: int) -> Decoder:
    """Build the layers from `layer` on, as `split_layers` does; their weights are on the meta device."""
    whole = empty_part(config, config.num_hidden_layers)
    return slice_layers(whole, layer, len(whole.layers), embed=False, norm=True) if layer else whole


def _compute_buffers(part: Decoder) -> None:
    """Compute the buffers that no file stores, as transformers does after loading. Raise if it leaves one out."""
    for module in part.modules():
        buffers = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        unset = {name: buffer for name, buffer in buffers.items() if buffer is not None and buffer.is_meta}
        for name, buffer in unset.items():
            module._buffers[name] = torch.full(buffer.shape, float("nan") if buffer.is_floating_point() else 0).to(
                buffer.dtype
            )
        if unset:
            part._init_weights(module)
        for name in unset:
            if (computed := module._buffers[name]) is not None and computed.isnan().any():
                kind = part.config.model_type
                raise BackboneError(f"a backbone of type {kind!r} computes {name}, which is not saved; {HINT}")


def _numbered(layers: list[nn.Module], config: Any) -> nn.ModuleList:
    """Copy the layers, sharing weights, with numbers from 0, by which a layer finds its entry in a key/value cache.

    Args:
        config: the configuration that the copies refer to.
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
