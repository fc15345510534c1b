"""Memory on the accelerator, counted from shapes: weights in training, activations, and the tokens of a pass that fit.

    CPU            8192 tokens in a pass
    accelerator    65,536, or the next lower power of two whose activations take at most half of the free memory;
                   8192 and less may take all of it. 8192 if the backbone runs by its own forward: each of its rows
                   repeats the prompt, which these tokens do not count

A token counts once per expert with a LoRA. Half of the memory is left for what is not counted, such as attention,
embeddings and fragments of the allocator. A power of two stays the same if the free memory varies a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..config import BackboneConfig, LoRAConfig
from ..errors import BackboneError
from .backbone import (
    check_reward_head,
    described,
    has_reward_head,
    resolve_branch_layer,
    resolve_dtype,
    resolve_num_layers,
)
from .experts import lora_targets
from .families import is_packed, refused_reason, text_config, unpacked_reason
from .layers import Decoder, empty_part, split_layers

PASS_TOKENS, MAX_PASS_TOKENS = 8192, 65_536
_OVERHEAD = 1.5e9  # bytes of CUDA's context and the allocator's unused blocks; assumed
# Bytes of a weight of a quantized layer; 4 bits have a float32 scale per block of 64 weights.
_QUANTIZED_BYTES = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}
_EXPERTS_OF_A_LAYER = ("num_experts", "num_local_experts", "n_routed_experts")  # in configurations
_SHARE = 0.5  # of the free memory, for long passes


@dataclass(frozen=True)
class BackboneShape:
    """A decoder's shape."""

    layers: int
    width: int  # d
    feed_forward: int
    queries: int  # width of all query heads
    keys: int  # width of all key heads
    gated: bool = True  # the MLP has a gate, and three matrices instead of two

    @classmethod
    def of(cls, config: Any) -> BackboneShape | None:
        """Return the shape of a text model's configuration, or None for an unusual decoder."""
        if any(getattr(config, name, None) for name in _EXPERTS_OF_A_LAYER):
            return None
        try:
            layers, width, feed_forward = config.num_hidden_layers, config.hidden_size, config.intermediate_size
            heads = config.num_attention_heads
        except AttributeError:
            return None
        if not isinstance(feed_forward, int):  # it differs by layer
            return None
        head, key_heads = getattr(config, "head_dim", None), getattr(config, "num_key_value_heads", None)
        head = head or width // heads
        return cls(layers, width, feed_forward, heads * head, (key_heads or heads) * head)

    @property
    def layer(self) -> int:
        """The weights of one layer's linear parts."""
        return self.width * (2 * self.queries + 2 * self.keys + (2 + self.gated) * self.feed_forward)


def pass_bytes(shape: BackboneShape, size: float, tokens: float = PASS_TOKENS) -> float:
    """Return the bytes of a pass's activations without gradients, of `size` bytes a number.

    Only one layer's exist at a time.
    """
    feed_forward = (2 + shape.gated) * shape.feed_forward
    return tokens * size * (4 * shape.width + 2 * shape.queries + 2 * shape.keys + feed_forward)


def kept_bytes(
    shape: BackboneShape, layers: int, size: float, tokens: float = PASS_TOKENS, checkpointing: bool | str = False
) -> float:
    """Return the bytes of activations that a number of layers keeps for the backward pass.

    Saved for backward: the inputs to linear layers, to attention's and the gate's products and to the activation
    function; norms are computed in float32.

    Args:
        checkpointing: each layer keeps its input only, on the CPU if "offload"; the layer that runs again keeps all.
    """
    products = 6 * shape.width + 2 * shape.queries + 2 * shape.keys + (2 + 2 * shape.gated) * shape.feed_forward
    each = size * products + 4 * 2 * shape.width
    if not checkpointing:
        return tokens * layers * each
    return tokens * ((layers * size * shape.width if checkpointing != "offload" else 0) + each)


def trained_bytes(weights: float, size: float) -> float:
    """Return the bytes that weights take while they are trained.

    Each takes 20: value, gradient and best value in float32, and AdamW's two moments. Autocast to bfloat16 adds a copy.
    """
    return weights * (20 + 2 * (size == 2))


def scoring_tokens(decoder: Decoder) -> int:
    """Return the tokens of a pass without gradients through a trunk or branch."""
    shape = BackboneShape.of(decoder.config) if is_packed(decoder.config) else None
    return PASS_TOKENS if shape is None else _fitting(decoder, pass_bytes(shape, _size(decoder), 1))


def training_tokens(branch: Decoder, *, checkpointing: bool | str) -> int:
    """Return the tokens of a pass with a backward pass, before gradients and optimizer state are allocated.

    The branch has its trainable weights, which may be in shards; for `checkpointing` see `kept_bytes`.
    """
    shape, size = BackboneShape.of(branch.config) if is_packed(branch.config) else None, _size(branch)
    if shape is None:
        return PASS_TOKENS
    trainable = (p for p in branch.parameters() if p.requires_grad)
    trained = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in trainable)
    each = kept_bytes(shape, shape.layers, size, 1, checkpointing) + pass_bytes(shape, size, 1)
    return _fitting(branch, each, trained_bytes(trained, size))


def _size(decoder: Decoder) -> int:
    """Return the bytes of a number in the dtype in which the decoder computes."""
    return 2 if decoder.config.dtype in (torch.bfloat16, torch.float16) else 4


def _fitting(decoder: Decoder, token_bytes: float, reserved: float = 0.0) -> int:
    """Return the tokens of a pass on the decoder's device, of which `reserved` bytes are needed for something else."""
    if (free := free_memory(decoder.device)) is None:
        return PASS_TOKENS
    fitting = (free - reserved) / token_bytes
    # the largest powers of two that are not larger, at least 1
    long, short = (1 << max(1, int(tokens)).bit_length() - 1 for tokens in (_SHARE * fitting, fitting))
    return min(MAX_PASS_TOKENS, max(long, min(PASS_TOKENS, short)))


def free_memory(device: torch.device) -> float | None:
    """Return the bytes that tensors can still take on an accelerator; None on a CPU, or if PyTorch cannot tell."""
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "mem_get_info"):
        return None
    unused = module.memory_reserved(device) - module.memory_allocated(device)  # PyTorch holds it for new tensors
    return module.mem_get_info(device)[0] + unused


# --- a backbone before its weights are read -------------------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """What is known of a backbone before its weights are read."""

    kind: str  # the type of the text model
    composite: str | None  # the type of the composite that contains it, if any
    runs: str  # `packed`, `fallback` (its own forward) or `refused`
    reason: str | None  # why it is not packed
    layers: int = 0
    branch_layer: int = 0
    has_head: bool = False  # a reward model with one label, from whose head the general model starts
    targets: tuple[str, ...] = ()  # the linear layers that get LoRA by default
    dtype: str = ""  # of frozen weights and arithmetic
    trunk: int = 0  # number of parameters
    branch: int = 0  # number of parameters
    memory: Mapping[str, int] = field(default_factory=dict)  # bytes, see `_memory`


def survey(config: BackboneConfig, tasks: int = 5) -> Survey:
    """Find out how a backbone would run, and its memory for a number of tasks; only its configuration is read.

    Raises:
        BackboneError: the backbone has no readable configuration, or the settings do not fit it.
    """
    with described(config.path) as (_, full):
        text = text_config(full)
        kind, composite = text.model_type, full.model_type if text is not full else None
        if refusal := refused_reason(full):
            return Survey(kind, composite, "refused", refusal)
        check_reward_head(config, full)
        layers, layer = resolve_num_layers(config, text), resolve_branch_layer(config, text)
        whole = empty_part(text, layers)
    reason = unpacked_reason(text)
    if config.quantization != "none" and layer == 0:  # training refuses it too, since the router is then trained
        raise BackboneError(
            f"backbone.quantization is {config.quantization}, which needs router.kind: trunk, but there is no trunk"
            f"{': ' + reason if reason else ', since branch_layer is 0'}; set backbone.quantization to none"
        )
    linear = sum(module.weight.numel() for module in whole.modules() if type(module) is nn.Linear)
    trunk, branch = (sum(p.numel() for p in part.parameters()) if part else 0 for part in split_layers(whole, layer))
    shape = BackboneShape.of(text)
    if shape is not None:  # a configuration does not say whether the MLP has a gate; the number of weights does
        shapes = [replace(shape, layers=layers, gated=gated) for gated in (True, False)]
        shape = next((shape for shape in shapes if layers * shape.layer == linear), None)
    return Survey(
        kind,
        composite,
        "fallback" if reason else "packed",
        reason,
        layers=layers,
        branch_layer=layer,
        has_head=has_reward_head(full) and config.reward_head,
        targets=lora_targets(whole, LoRAConfig()),
        dtype=str(resolve_dtype(config.dtype)).removeprefix("torch."),
        trunk=trunk,
        branch=branch,
        memory=_memory(config, tasks, (trunk, branch, linear), shape, layers - layer),
    )


def _memory(
    config: BackboneConfig, tasks: int, weights: tuple[int, int, int], shape: BackboneShape | None, top: int
) -> dict[str, int]:
    """Return the bytes of weights for a number of tasks, of activations, and of both.

    Args:
        weights: numbers of weights in the trunk, in a branch, and in the linear layers of both.
        shape: None if the layers are not a usual decoder's.
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
    size, memory = resolve_dtype(config.dtype).itemsize, dict[str, float]()
    if shape is not None:
        memory["pass"] = pass_bytes(shape, size)
        memory["kept"] = kept_bytes(shape, top, size)
        memory["kept_checkpointing"] = kept_bytes(shape, top, size, checkpointing=True)
    active = memory.get("pass", 0.0) + _OVERHEAD
    # embeddings, norms and biases are not quantized
    memory["frozen"] = (trunk + branch - linear) * size + linear * _QUANTIZED_BYTES.get(config.quantization, size)
    memory["score_frozen"] = memory["train_heads"] = memory["frozen"] + active
    if config.quantization == "none":
        memory["own"] = trunk * size + branch * 4 * (tasks + 1)
        memory["training"] = trained_bytes(branch, size)
        memory["score_own"] = memory["own"] + active
        for form in ("", "_checkpointing"):
            memory[f"train_full{form}"] = memory["score_own"] + memory["training"] + memory.get(f"kept{form}", 0.0)
    return {name: round(value) for name, value in memory.items()}
