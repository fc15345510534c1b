"""The inner layer's experts: one LoRA and one head a capability, all run as one batch.

Shapes: k experts, N responses, T tokens, D embedding width, r LoRA rank.

    tokens (T, d) ──▶ (k, T, d) ──branch with stacked LoRA──▶ states (k, …, d) ──pool──▶ z (k, N, D)
    score_i = head_i(z_i)

The branch's layers are the library's own, sharing their weights with the plain branch; only the linear layers named in
`targets` know that their rows come in k blocks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import HeadConfig, LoRAConfig
from ..errors import BackboneError
from .heads import Head, embed
from .packed_attention import Decoder
from .packing import Packed


class StackedLoRALinear(nn.Module):
    """y = W x + (alpha / r) · B_i A_i x for the i-th of k equal blocks of rows (LoRA, arXiv 2106.09685).

    `lora_A` is (k, r, in), `lora_B` is (k, out, r) and starts at zero, so that an expert starts as its branch.

    Attributes:
        active: the experts that the blocks of rows belong to, where they are not all k.
    """

    active: Tensor | None = None

    def __init__(self, base: nn.Linear, count: int, config: LoRAConfig) -> None:
        super().__init__()
        self.base, self.count, self.scaling = base, count, config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        like = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(count, config.rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(count, base.out_features, config.rank, **like))
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

    In eval mode the layer computes with the sum, as the saved layer does; in training mode the LoRA stands beside the
    layer, so that dropout can act on its input.
    """

    def merged(self) -> Tensor:
        """The layer's weight (out, in) with the LoRA added, in float32."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self.base.weight.float() + self.scaling * self.lora_B[0] @ self.lora_A[0]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else functional.linear(x, self.merged(), self.base.bias)


def with_experts(
    branch: Decoder, count: int, config: LoRAConfig, kind: type[StackedLoRALinear] = StackedLoRALinear
) -> Decoder:
    """The branch with stacked LoRA in its target layers; its linear layers and all weights are the branch's own.

    Raises:
        BackboneError: no linear layer has one of the target names.
    """
    linear = (module for module in branch.modules() if isinstance(module, nn.Linear))
    expert_branch = copy.deepcopy(branch, {id(own): own for own in (*branch.parameters(), *linear)})
    found = [
        (parent, name, child)
        for parent in expert_branch.modules()
        for name, child in parent.named_children()
        if name in config.targets and isinstance(child, nn.Linear)
    ]
    if not found:
        raise BackboneError(f"phase2.targets {list(config.targets)} name no linear layer of this backbone")
    for parent, name, child in found:
        setattr(parent, name, kind(child, count, config))
    return expert_branch


class Experts(nn.Module):
    """The k experts of one task. With rank 0 they are heads alone and share the branch's own embedding."""

    def __init__(
        self,
        branch: Decoder,
        capabilities: Sequence[str],
        width: int,
        config: LoRAConfig,
        head: HeadConfig,
        pooling: str,
    ) -> None:
        super().__init__()
        self.capabilities, self.config, self.pooling = tuple(capabilities), config, pooling
        self.heads = nn.ModuleList(Head(width, head) for _ in self.capabilities)
        self.branch: Decoder | None = None
        self.attach(branch)

    def attach(self, branch: Decoder) -> None:
        """Puts new LoRA on this branch, whose weights must be in place: they are shared, not copied."""
        if self.config.rank and len(self):
            self.branch = with_experts(branch, len(self), self.config).train(self.training)  # else dropout would be on

    def __len__(self) -> int:
        return len(self.capabilities)

    def embed(self, inputs: Packed, base: Tensor | None) -> Tensor:
        """z (k, N, D) of all experts in one pass; `base` (N, D) is the plain branch's, for experts without LoRA."""
        if self.branch is None:
            assert base is not None
            return base.expand(len(self), *base.shape)
        return embed(self.branch, inputs, self.pooling, num_experts=len(self))

    def score(self, embeddings: Tensor) -> Tensor:
        """Capability scores (N, k) from embeddings z (k, N, D)."""
        if not len(self):
            return embeddings.new_zeros(embeddings.shape[1], 0)
        return torch.stack([head(z) for head, z in zip(self.heads, embeddings, strict=True)], dim=-1)


def lora_layers(branch: nn.Module) -> dict[str, StackedLoRALinear]:
    """The stacked LoRA layers of a branch by name, such as `layers.0.self_attn.q_proj`."""
    return {name: module for name, module in branch.named_modules() if isinstance(module, StackedLoRALinear)}
