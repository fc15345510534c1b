"""A task's experts: one LoRA and one head per capability, all run as one batch.

Shapes: k experts, N responses, T tokens, d hidden width, D embedding width, r LoRA rank.

    tokens (T, d) ──▶ (k, T, d) ──branch with stacked LoRA──▶ states (k, …, d) ──pool──▶ z (k, N, D)
    score_i = head_i(z_i)

The branch's layers are transformers' own and share their weights with the plain branch; only the linear layers
named in `targets` are replaced by layers that apply k LoRAs to k blocks of rows. On disk, the LoRA of each expert is a
PEFT adapter of its own, whose layers have the numbers of the whole decoder: a branch follows `first_layer` layers.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from ..config import LoRAConfig
from ..errors import BackboneError, CheckpointError, did_you_mean, shorten
from .heads import Head, embed
from .integrity import read_tensors, write_tensors
from .layers import Decoder
from .packing import Packed

_ADAPTER_FILE = "adapter_model.safetensors"
# Names of linear layers that compute queries, keys and values in families without `q_proj` and `v_proj`.
_ATTENTION_INPUTS = (
    *("qkv_proj", "Wqkv", "query_key_value", "qkv", "c_attn", "in_proj", "query", "value", "query_proj", "value_proj"),
    *("q_lin", "v_lin", "q", "v", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
)


class StackedLoRALinear(nn.Module):
    """y = W x + (alpha / r) · B_i A_i x for the i-th of k equal blocks of rows (LoRA, arXiv 2106.09685).

    `lora_A` is (k, r, in). `lora_B` is (k, out, r) and starts at zero, so a new expert equals its branch.

    Attributes:
        active: the blocks' experts, as indices; None for all k, in order.
    """

    active: Tensor | None = None

    def __init__(self, base: nn.Linear, count: int, config: LoRAConfig) -> None:
        super().__init__()
        self.base, self.count, self.scaling = base, count, config.alpha / config.rank
        self.out_features = base.out_features
        self.dropout = nn.Dropout(config.dropout)
        options = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(count, config.rank, base.in_features, **options))
        self.lora_B = nn.Parameter(torch.zeros(count, base.out_features, config.rank, **options))
        if not self.lora_A.is_meta:
            for matrix in self.lora_A:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        lora_A, lora_B = self.lora_A, self.lora_B
        if self.active is not None:
            lora_A, lora_B = lora_A[self.active], lora_B[self.active]
        rows = self.dropout(x).reshape(len(lora_A), -1, x.shape[-1])  # (k, T, in)
        down = torch.bmm(rows, lora_A.to(x.dtype).transpose(1, 2))
        up = torch.bmm(down, lora_B.to(x.dtype).transpose(1, 2))
        return self.base(x) + self.scaling * up.reshape(*x.shape[:-1], -1)


class MergedLoRALinear(StackedLoRALinear):
    """y = (W + (alpha / r) · B A) x: a single LoRA that becomes part of the layer's weight after training.

    In eval mode the layer computes with the sum, as the saved layer does: validation and the saved model round
    alike. In training mode it adds the LoRA's output: dropout acts on the LoRA's input only.
    """

    def merged(self) -> Tensor:
        """Return the layer's weight (out, in) with the LoRA added, in float32."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            weight = self.base.weight
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            return whole.float() + self.scaling * self.lora_B[0] @ self.lora_A[0]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else functional.linear(x, self.merged(), self.base.bias)


def with_experts(
    branch: Decoder, count: int, config: LoRAConfig, kind: type[StackedLoRALinear] = StackedLoRALinear
) -> Decoder:
    """Copy the branch with stacked LoRA in its target layers; linear layers and all weights are shared, not copied.

    Args:
        count: the number of experts k.
        kind: the class of the new layers.

    Raises:
        BackboneError: no linear layer has one of the target names.
    """
    shared = (*branch.parameters(), *(module for module in branch.modules() if isinstance(module, nn.Linear)))
    expert_branch = copy.deepcopy(branch, {id(item): item for item in shared})  # the memo: these are not copied
    chosen, replaced = lora_targets(branch, config), 0
    for parent in list(expert_branch.modules()):
        for name, child in parent.named_children():
            if name in chosen and isinstance(child, nn.Linear):
                setattr(parent, name, kind(child, count, config))
                replaced += 1
    if not replaced:
        raise BackboneError(f"lora.targets {list(config.targets)} name no linear layer of this backbone")
    return expert_branch


def lora_targets(model: nn.Module, config: LoRAConfig) -> tuple[str, ...]:
    """Return the names of the linear layers that get LoRA.

    `targets` gives the names. If they are the default ones and the model has no such layer, PEFT's names for the
    model's family are used, or else other usual names of the layers that compute queries, keys and values.
    """
    linear = _linear_names(model)
    if config.targets != LoRAConfig().targets or linear & set(config.targets):
        return config.targets
    # imported here because peft may still be importing this package, through transformers
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as FAMILIES

    known = FAMILIES.get(getattr(model.config, "model_type", ""), ())  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(n for n in known if n in linear) or tuple(n for n in _ATTENTION_INPUTS if n in linear)


def check_targets(branch: nn.Module, config: LoRAConfig, setting: str) -> None:
    """Raise `BackboneError`, with the setting's name, if a target is not the name of a linear layer of the branch.

    With the default targets, it is enough that `lora_targets` finds some.
    """
    linear = _linear_names(branch)
    missing = [name for name in config.targets if name not in linear]
    if not missing or (config.targets == LoRAConfig().targets and lora_targets(branch, config)):
        return
    known = f"its linear layers are {', '.join(sorted(linear))}" if linear else ""
    none = "it has none; train heads alone, with rank 0"
    hint = "; ".join(filter(None, [did_you_mean(missing[0], linear), known or none]))
    raise BackboneError(
        f"{setting}: no linear layer of the branch is called {missing[0]} (got {shorten(list(config.targets))}); {hint}"
    )


def _linear_names(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}


class Experts(nn.Module):
    """The k experts of a task. With LoRA rank 0 they are heads only, which read the plain branch's embedding."""

    def __init__(
        self, branch: Decoder, capabilities: Sequence[str], width: int, config: LoRAConfig, pooling: str
    ) -> None:
        super().__init__()
        self.capabilities, self.config, self.pooling = tuple(capabilities), config, pooling
        self.heads = nn.ModuleList(Head(width) for _ in self.capabilities)
        self.branch: Decoder | None = None
        self.attach(branch)

    def attach(self, branch: Decoder) -> None:
        """Create new LoRA layers on a branch. Its weights must be loaded already, since they are shared, not copied."""
        if self.config.rank and len(self):
            self.branch = with_experts(branch, len(self), self.config)
            self.branch.train(self.training)  # new LoRA layers are in training mode, with dropout

    def __len__(self) -> int:
        return len(self.capabilities)

    @property
    def runs(self) -> int:
        """How often a pass runs each token: once per expert with a LoRA; otherwise once."""
        return len(self) if self.branch is not None else 1

    def embed(self, inputs: Packed, base: Tensor | None) -> Tensor:
        """Return all experts' embeddings z (k, N, D), from one pass.

        Without a LoRA, they are the plain branch's embeddings `base` (N, D).
        """
        if self.branch is None:
            assert base is not None
            return base.expand(len(self), *base.shape)
        return embed(self.branch, inputs, self.pooling, num_experts=len(self))

    def score(self, embeddings: Tensor) -> Tensor:
        """Compute capability scores (N, k) from embeddings z (k, N, D)."""
        if not len(self):
            return embeddings.new_zeros(embeddings.shape[1], 0)
        return torch.stack([head(z) for head, z in zip(self.heads, embeddings, strict=True)], dim=-1)


def lora_layers(branch: nn.Module) -> dict[str, StackedLoRALinear]:
    """Return the stacked LoRA layers of a branch by name, such as `layers.0.self_attn.q_proj`."""
    return {name: module for name, module in branch.named_modules() if isinstance(module, StackedLoRALinear)}


# --- PEFT adapters ---------------------------------------------------------------------------------------------------


def write_adapter(experts: Experts, index: int, first_layer: int, folder: Path) -> None:
    """Write the adapter of one expert into a new folder."""
    # imported here for the same reason as in `lora_targets`
    from peft import LoraConfig, TaskType

    config = LoraConfig(
        r=experts.config.rank,
        lora_alpha=experts.config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=experts.config.dropout,
        task_type=TaskType.FEATURE_EXTRACTION,
        inference_mode=True,
    )
    # not an argument above: PEFT would make it a set, whose order differs between processes
    config.target_modules = [_renumbered(name, first_layer) for name in lora_layers(experts)]  # pyright: ignore
    config.save_pretrained(str(folder))
    write_tensors(_adapter(experts, index, first_layer), folder / _ADAPTER_FILE)


@torch.no_grad()
def read_adapter(experts: Experts, index: int, first_layer: int, folder: Path) -> None:
    """Set the LoRA of one expert to a stored adapter. Raise `CheckpointError` unless its tensors fit."""
    stored, expected = read_tensors(folder / _ADAPTER_FILE), _adapter(experts, index, first_layer)
    if {name: t.shape for name, t in expected.items()} != {name: t.shape for name, t in stored.items()}:
        raise CheckpointError(f"{folder / _ADAPTER_FILE}: its tensors do not fit config.json")
    for name, tensor in expected.items():
        tensor.copy_(stored[name])


def _adapter(experts: Experts, index: int, first_layer: int) -> dict[str, Tensor]:
    """Return an expert's LoRA under PEFT's names, with the layer numbers of the whole decoder."""
    state: dict[str, Tensor] = {}
    for name, layer in lora_layers(experts).items():
        prefix = f"base_model.model.{_renumbered(name, first_layer)}"
        state[f"{prefix}.lora_A.weight"] = layer.lora_A[index]
        state[f"{prefix}.lora_B.weight"] = layer.lora_B[index]
    return state


def _renumbered(name: str, first_layer: int) -> str:
    return re.sub(
        r"^layers\.(\d+)", lambda match: f"layers.{int(match[1]) + first_layer}", name.removeprefix("branch.")
    )
