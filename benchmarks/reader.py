"""A reader: an expert that is one learned token after the response, over a branch that runs once for all experts.

At each layer of the branch, the token attends to the branch's keys and values of its prompt and response and to itself;
it has a LoRA of its own in all linear layers. Its final state joins the pooled embedding, and a linear head scores
both. The branch is frozen, so its keys and values are computed once. An experiment of `learning_curves.py`.

Shapes: N responses, S tokens of the longest prompt with its response, L layers of the branch, H heads, G heads of keys,
c head width, d hidden width, D embedding width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from dmoerm.model.packed_attention import Decoder, computing, run
from dmoerm.model.packing import Packed, pack

LORA = {"rank": 8, "alpha": 16.0}
States = tuple[Tensor, list[Tensor]]
T = TypeVar("T")


class Memory(NamedTuple):
    """What a response's reader attends to: keys and values (L, tokens, G, c) of its prompt and of itself."""

    keys: Tensor
    values: Tensor


@torch.no_grad()
def memories(branch: Decoder, states: Sequence[States]) -> list[list[Memory]]:
    """Return the responses' memories of several prompts, from one pass of the branch.

    Args:
        states: of each prompt (P, d) and its responses [(R, d)], at the cut.
    """
    packed = pack(states)
    return remember(branch, packed, lambda: run(branch, packed))[1]


def remember(branch: Decoder, packed: Packed, compute: Callable[[], T]) -> tuple[T, list[list[Memory]]]:
    """Call `compute`, which runs the branch once over the packed states; return its result and the memories.

    `compute` is a full pass, or one that pools the last token, which projects it once more in the last layer.
    """
    kept: dict[str, list[Tensor]] = {"k_proj": [], "v_proj": []}
    hooks = [
        getattr(layer.self_attn, name).register_forward_hook(lambda _, __, output, rows=rows: rows.append(output[0]))  # pyright: ignore
        for layer in branch.layers
        for name, rows in kept.items()
    ]
    result = compute()
    for hook in hooks:
        hook.remove()
    width = branch.layers[0].self_attn.head_dim  # pyright: ignore
    count = len(branch.layers)  # pyright: ignore
    keys, values = (torch.stack(rows[:count]).unflatten(-1, (-1, width)) for rows in kept.values())  # (L, T, G, c)
    cos, sin = branch.rotary_emb(keys, position_ids=packed.packing.positions[None])
    keys = apply_rotary_pos_emb(keys, keys, cos, sin, unsqueeze_dim=2)[0].to(values.dtype)
    return result, _by_response(packed, keys, values)


def _by_response(packed: Packed, keys: Tensor, values: Tensor) -> list[list[Memory]]:
    packing = packed.packing
    columns = [tensor.split([*packing.prompts, *packing.responses], 1) for tensor in (keys, values)]
    prompts = len(packing.prompts)
    rows: list[list[Memory]] = [[] for _ in range(prompts)]
    for n, owner in enumerate(packing.owner):
        rows[owner].append(Memory(*(torch.cat([c[owner], c[prompts + n]], 1) for c in columns)))
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class ReaderInputs:
    """The inputs of N responses.

    Attributes:
        keys, values: (L, N, S, G, c), padded.
        lengths: (N,), tokens of each response with its prompt, which is the reader's position.
        pooled: (N, D), the branch's embeddings.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    pooled: Tensor

    def to(self, device: Any, non_blocking: bool = False) -> ReaderInputs:
        """Return the inputs on a device; as `Tensor.to`."""
        tensors = (getattr(self, field.name) for field in dataclasses.fields(self))
        return ReaderInputs(*(tensor.to(device, non_blocking=non_blocking) for tensor in tensors))


def join(memory: Sequence[Memory], pooled: Tensor) -> ReaderInputs:
    """Pad the memories of N responses."""
    lengths = torch.tensor([m.keys.shape[1] for m in memory], device=pooled.device)
    keys, values = (
        torch.stack([functional.pad(t, (0, 0, 0, 0, 0, int(lengths.max()) - t.shape[1])) for t in rows], 1)
        for rows in zip(*memory, strict=True)
    )
    return ReaderInputs(keys, values, lengths, pooled)


class Adapted(nn.Module):
    """A frozen linear layer with a LoRA that starts as zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)


class Reader(nn.Module):
    """Return the reader's final states (N, d), in float32.

    Args:
        branch: its layers are Llama's or alike: pre-norm attention with rotary embeddings, and a gated MLP.
        start: (d,), the token's initial state at the cut.
    """

    def __init__(self, branch: Decoder, start: Tensor, dropout: float = 0.1) -> None:
        super().__init__()
        self.token = nn.Parameter(start.float().clone())
        self.branch = [branch]  # in a list: its weights are not this module's
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: Adapted(getattr(part, name), **LORA) for part, names in _linear(layer) for name in names}
            )
            for layer in branch.layers  # pyright: ignore
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: ReaderInputs) -> Tensor:
        with computing(self.branch[0]):
            return self._run(inputs)

    def _run(self, inputs: ReaderInputs) -> Tensor:
        branch = self.branch[0]
        states = self.token.expand(len(inputs.lengths), -1)
        cos, sin = branch.rotary_emb(states[None], position_ids=inputs.lengths[None])
        mask = torch.arange(inputs.keys.shape[2] + 1, device=inputs.keys.device)[None] < inputs.lengths[:, None]
        mask[:, -1] = True  # the reader itself
        for number, (layer, own) in enumerate(zip(branch.layers, self.layers, strict=True)):  # pyright: ignore
            x = self.dropout(layer.input_layernorm(states))
            width = layer.self_attn.head_dim
            q, k, v = (own[name](x).unflatten(-1, (-1, width)) for name in ("q_proj", "k_proj", "v_proj"))  # pyright: ignore
            q, k = (apply_rotary_pos_emb(t[None], t[None], cos, sin, unsqueeze_dim=2)[0][0] for t in (q, k))
            keys = torch.cat([inputs.keys[number].to(k.dtype), k[:, None]], 1).transpose(1, 2)
            values = torch.cat([inputs.values[number].to(v.dtype), v[:, None]], 1).transpose(1, 2)
            out = functional.scaled_dot_product_attention(
                q[:, :, None], keys, values, attn_mask=mask[:, None, None], enable_gqa=True
            )
            states = states + own["o_proj"](out.flatten(1))  # pyright: ignore
            x = self.dropout(layer.post_attention_layernorm(states))
            gated = layer.mlp.act_fn(own["gate_proj"](x)) * own["up_proj"](x)  # pyright: ignore
            states = states + own["down_proj"](gated)  # pyright: ignore
        return branch.norm(states).float()


def _linear(layer: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Return the parts of a layer with the names of their linear layers."""
    return [
        (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
        (layer.mlp, ("gate_proj", "up_proj", "down_proj")),
    ]


class ReaderScorer(nn.Module):
    """Reward of [pooled embedding, reader's state]."""

    def __init__(self, reader: Reader, head: nn.Module) -> None:
        super().__init__()
        self.reader, self.head = reader, head

    def features(self, inputs: ReaderInputs) -> Tensor:
        """Return (N, D + d)."""
        return torch.cat([inputs.pooled, self.reader(inputs)], -1)

    def forward(self, inputs: ReaderInputs) -> Tensor:
        return self.head(self.features(inputs))
