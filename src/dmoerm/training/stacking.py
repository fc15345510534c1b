"""A task's experts as one module in training: every parameter a stack of k, so that one pass trains them all.

Shapes: k experts, N responses, D embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..model.experts import lora_layers
from ..model.heads import Head, embed
from ..model.packed_attention import Decoder
from ..model.packing import Packed


class HeadStack(nn.Module):
    """k heads side by side: embeddings (k, N, D), or (N, D) for all of them, → scores (k, N).

    `active` names the heads wanted, where they are not all k.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self._one = [copy.deepcopy(heads[0])]  # in a list, so that its parameters are not this module's
        parameters, buffers = stack_module_state(list(heads))
        self._names = {name: name.replace(".", ":") for name in (*parameters, *buffers)}
        for name, tensor in parameters.items():
            self.register_parameter(self._names[name], nn.Parameter(tensor.detach().clone()))
        for name, tensor in buffers.items():
            self.register_buffer(self._names[name], tensor.detach().clone())

    def forward(self, embeddings: Tensor, active: Tensor | None = None) -> Tensor:
        wanted = slice(None) if active is None else active
        state = {name: getattr(self, own)[wanted] for name, own in self._names.items()}
        one = self._one[0].train(self.training)
        run = torch.vmap(lambda s, z: functional_call(one, s, (z,)), (0, 0), randomness="different")
        stack = len(next(iter(state.values())))
        return run(state, embeddings if embeddings.dim() == 3 else embeddings.expand(stack, *embeddings.shape))

    def states(self) -> list[Mapping[str, Tensor]]:
        """Each head's own state."""
        whole = {name: getattr(self, own).detach() for name, own in self._names.items()}
        stack = len(next(iter(whole.values())))
        return [{name: tensor[i].clone() for name, tensor in whole.items()} for i in range(stack)]


class ExpertStack(nn.Module):
    """k experts on packed hidden states → scores (k, N); `active` as above."""

    def __init__(self, branch: Decoder, head: HeadStack, pooling: str) -> None:
        super().__init__()
        self.branch, self.head, self.pooling = branch, head, pooling

    def forward(self, inputs: Packed, active: Tensor | None = None) -> Tensor:
        for layer in lora_layers(self.branch).values():
            layer.active = active
        stack = len(next(self.head.parameters())) if active is None else len(active)
        return self.head(embed(self.branch, inputs, self.pooling, stack), active)
