"""How a backbone would run and the memory that it would take, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
        composite: the type of the composite that contains it; None: it stands alone.
        runs: `packed`, `fallback` (its own forward) or `refused`.
        reason: why it is not packed.
        layers, branch_layer: the number of layers, and that of the trunk's; 0 if it is refused.
        has_head: it is a reward model with one label whose head the general model starts from.
        targets: the linear layers that get LoRA by default.
        dtype: of frozen weights and arithmetic.
        trunk, branch: numbers of parameters.
        linear: the number of weights in the linear layers of both, which can be quantized.
        bytes_per_weight: of frozen weights.
        quantization: of the linear layers, as in the config.
        shape: of the layers, from which activations are counted; None: they are not those of a usual decoder.
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
    linear: int = 0
    bytes_per_weight: int = 0
    quantization: str = "none"
    shape: BackboneShape | None = None

    def memory(self, tasks: int) -> dict[str, int]:
        """Return the bytes of weights for a number of tasks, of activations, and of both.

        Keys:
            frozen: weights with one branch for all tasks (`base: frozen`).
            own: weights with a trained branch per task, in float32, and the general model's.
            training: what training one branch takes beside that (`base: full`).
            pass, kept: activations of a pass of 8192 tokens, and those that a branch keeps for the backward pass.
            kept_checkpointing: the latter with `gradient_checkpointing`.
            score_frozen, score_own, train_heads, train_full, train_full_checkpointing: the sums that scoring and
            training take, with an allowance for the device's context; without activations if they are unknown.

        With quantization, which needs `base: frozen`, there are no `own`, `training`, `score_own` and `train_full`.
        """
        activations = self._activations()
        active = activations.get("pass", 0.0)
        frozen = self._frozen_bytes()
        memory = {"frozen": frozen, **activations}
        memory["score_frozen"] = memory["train_heads"] = frozen + active + OVERHEAD
        if self.quantization == "none":
            memory["own"] = self.trunk * self.bytes_per_weight + self.branch * 4 * (tasks + 1)
            memory["training"] = trained_bytes(self.branch, self.bytes_per_weight)
            memory["score_own"] = memory["own"] + active + OVERHEAD
            for again in ("", "_checkpointing"):
                kept = activations.get(f"kept{again}", 0.0)
                memory[f"train_full{again}"] = memory["score_own"] + memory["training"] + kept
        return {name: round(value) for name, value in memory.items()}

    def _frozen_bytes(self) -> float:
        """Return the bytes of trunk and one branch; embeddings, norms and biases are not quantized."""
        size, weights = self.bytes_per_weight, self.trunk + self.branch
        return (weights - self.linear) * size + self.linear * QUANTIZED_BYTES.get(self.quantization, size)

    def _activations(self) -> dict[str, float]:
        if self.shape is None:
            return {}
        size, layers = self.bytes_per_weight, self.layers - self.branch_layer
        kept, again = (kept_bytes(self.shape, layers, size, checkpointing=again) for again in (False, True))
        return {"pass": pass_bytes(self.shape, size), "kept": kept, "kept_checkpointing": again}


def survey(config: BackboneConfig) -> Survey:
    """Find out how a backbone would run; only its configuration is read.

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
    _check_quantization(config, layer, reason)
    with readable(path):
        whole = empty_part(text, layers)
    trunk, branch = split_layers(whole, layer)
    linear = sum(module.weight.numel() for module in whole.modules() if type(module) is nn.Linear)
    shape = BackboneShape.of(text)
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
        trunk=_size(trunk),
        branch=_size(branch),
        linear=linear,
        bytes_per_weight=dtype.itemsize,
        quantization=config.quantization,
        shape=shape and replace(shape, layers=layers).fitted(linear),
    )


def _check_quantization(config: BackboneConfig, branch_layer: int, reason: str | None) -> None:
    """Raise `BackboneError` if training refuses the quantization, since without a trunk the router is trained."""
    if config.quantization != "none" and branch_layer == 0:
        raise BackboneError(
            f"backbone.quantization is {config.quantization}, which needs router.kind: trunk, but there is no trunk"
            f"{': ' + reason if reason else ', since branch_layer is 0'}; set backbone.quantization to none"
        )


def _size(part: Any) -> int:
    return sum(p.numel() for p in part.parameters()) if isinstance(part, nn.Module) else 0
