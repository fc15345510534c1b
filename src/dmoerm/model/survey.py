"""How a backbone would run and the memory that it would take, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from ..config import BackboneConfig, LoRAConfig
from ..errors import BackboneError
from .backbone import (
    backbone_folder,
    check_reward_head,
    has_reward_head,
    readable,
    resolve_branch_layer,
    resolve_dtype,
    resolve_num_layers,
)
from .experts import lora_targets
from .families import refused_reason, text_config, unpacked_reason
from .layers import empty_part, split_layers
from .memory import OVERHEAD, QUANTIZED_BYTES, BackboneShape, kept_bytes, pass_bytes, trained_bytes


@dataclass(frozen=True)
class Survey:
    """What is known of a backbone before its weights are read.

    Attributes:
        kind: the type of the text model.
        composite: the type of the composite that contains it, if any.
        runs: `packed`, `fallback` (its own forward) or `refused`.
        reason: why it is not packed.
        layers, branch_layer: numbers of layers, of all and of the trunk; 0 if it is refused.
        has_head: it is a reward model with one label, and the general model starts from its head.
        targets: the linear layers that get LoRA by default.
        dtype: of frozen weights and arithmetic.
        trunk, branch: numbers of parameters.
        memory: bytes, see `_memory`.
    """

    kind: str
    composite: str | None
    runs: str
    reason: str | None
    layers: int = 0
    branch_layer: int = 0
    has_head: bool = False
    targets: tuple[str, ...] = ()
    dtype: str = ""
    trunk: int = 0
    branch: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)


def survey(config: BackboneConfig, tasks: int = 5) -> Survey:
    """Find out how a backbone would run; only its configuration is read.

    Args:
        tasks: the number of tasks that the memory is for.

    Raises:
        BackboneError: the backbone has no readable configuration, or the settings do not fit it.
    """
    path = backbone_folder(config.path)
    with readable(path):
        full = AutoConfig.from_pretrained(path)
    text = text_config(full)
    kind, composite = text.model_type, full.model_type if text is not full else None
    if refusal := refused_reason(full):
        return Survey(kind, composite, "refused", refusal)
    with readable(path):
        check_reward_head(config, full)
    layers, layer = resolve_num_layers(config, text), resolve_branch_layer(config, text)
    reason, dtype = unpacked_reason(text), resolve_dtype(config.dtype)
    if config.quantization != "none" and layer == 0:  # training refuses it too, since the router is then trained
        raise BackboneError(
            f"backbone.quantization is {config.quantization}, which needs router.kind: trunk, but there is no trunk"
            f"{': ' + reason if reason else ', since branch_layer is 0'}; set backbone.quantization to none"
        )
    with readable(path):
        whole = empty_part(text, layers)
    linear = sum(module.weight.numel() for module in whole.modules() if type(module) is nn.Linear)
    trunk, branch = (sum(p.numel() for p in part.parameters()) if part else 0 for part in split_layers(whole, layer))
    shape = BackboneShape.of(text)
    shape = shape and replace(shape, layers=layers).fitted(linear)
    return Survey(
        kind,
        composite,
        "fallback" if reason else "packed",
        reason,
        layers=layers,
        branch_layer=layer,
        has_head=has_reward_head(full) and config.reward_head,
        targets=lora_targets(whole, LoRAConfig()),
        dtype=str(dtype).removeprefix("torch."),
        trunk=trunk,
        branch=branch,
        memory=_memory(config.quantization, dtype, tasks, (trunk, branch, linear), shape, layers - layer),
    )


def _memory(
    quantization: str, dtype: torch.dtype, tasks: int, weights: tuple[int, int, int], shape: Any, top: int
) -> dict[str, int]:
    """Return the bytes of weights for a number of tasks, of activations, and of both.

    Args:
        weights: numbers of weights in the trunk, in a branch, and in the linear layers of both.
        shape: the layers' `BackboneShape`; None if they are not a usual decoder's.
        top: the number of layers in a branch.

    Returns:
        frozen: weights with one branch for all tasks (`base: frozen`).
        own: weights with a trained branch per task, in float32, and the general model's.
        training: what training one branch takes in addition (`base: full`).
        pass, kept, kept_checkpointing: activations of a pass of 8192 tokens, and what a branch keeps of them for the
            backward pass, without and with `gradient_checkpointing`; absent if the shape is None.
        score_frozen, score_own, train_heads, train_full, train_full_checkpointing: the sums that scoring and training
            take, with an allowance for the device's context.

        With quantization, which needs `base: frozen`, there are no `own`, `training`, `score_own` and `train_full`.
    """
    trunk, branch, linear = weights
    size, memory = dtype.itemsize, dict[str, float]()
    if shape is not None:
        memory["pass"] = pass_bytes(shape, size)
        memory["kept"] = kept_bytes(shape, top, size)
        memory["kept_checkpointing"] = kept_bytes(shape, top, size, checkpointing=True)
    active = memory.get("pass", 0.0) + OVERHEAD
    # embeddings, norms and biases are not quantized
    memory["frozen"] = (trunk + branch - linear) * size + linear * QUANTIZED_BYTES.get(quantization, size)
    memory["score_frozen"] = memory["train_heads"] = memory["frozen"] + active
    if quantization == "none":
        memory["own"] = trunk * size + branch * 4 * (tasks + 1)
        memory["training"] = trained_bytes(branch, size)
        memory["score_own"] = memory["own"] + active
        for form in ("", "_checkpointing"):
            memory[f"train_full{form}"] = memory["score_own"] + memory["training"] + memory.get(f"kept{form}", 0.0)
    return {name: round(value) for name, value in memory.items()}
