"""Stack a task's k experts into one module for training: one pass trains them all.

Every trained parameter has a first dimension of size k. `torch.vmap` maps a single head over it, so the k heads run as
one batched operation. The loss is a sum over the experts, and no parameter slice occurs in two experts' terms, so each
slice gets the gradient that it would get alone.

Shapes: k experts, a active experts, N responses, D embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..model.experts import lora_layers
from ..model.heads import Head, embed
from ..model.layers import Decoder
from ..model.packing import Packed


class HeadStack(nn.Module):
    """k heads: embeddings (k, N, D), or (N, D) that all heads share, → scores (k, N).

    With `active` (a,), expert indices, only these heads run: embeddings (a, N, D) or (N, D) → scores (a, N).
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self._template = [copy.deepcopy(heads[0])]  # a list, so that its parameters are not registered
        parameters, buffers = stack_module_state(list(heads))
        self._names = {name: name.replace(".", ":") for name in (*parameters, *buffers)}
        for name, tensor in parameters.items():
            self.register_parameter(self._names[name], nn.Parameter(tensor.detach().clone()))
        for name, tensor in buffers.items():
            self.register_buffer(self._names[name], tensor.detach().clone())

    def forward(self, embeddings: Tensor, active: Tensor | None = None) -> Tensor:
        index = slice(None) if active is None else active
        state = {name: getattr(self, attribute)[index] for name, attribute in self._names.items()}
        head = self._template[0].train(self.training)
        # "different": every expert draws its own dropout mask, as it would alone
        run = torch.vmap(lambda s, z: functional_call(head, s, (z,)), (0, 0), randomness="different")
        count = len(next(iter(state.values())))
        return run(state, embeddings if embeddings.dim() == 3 else embeddings.expand(count, *embeddings.shape))

    def states(self) -> list[Mapping[str, Tensor]]:
        """Return the state of each head."""
        stacks = {name: getattr(self, attribute).detach() for name, attribute in self._names.items()}
        count = len(next(iter(stacks.values())))
        return [{name: stack[i].clone() for name, stack in stacks.items()} for i in range(count)]


class ExpertStack(nn.Module):
    """k experts: packed hidden states of N responses → scores (k, N); with `active` (a,), scores (a, N)."""

    def __init__(self, branch: Decoder, head: HeadStack, pooling: str) -> None:
        super().__init__()
        self.branch, self.head, self.pooling = branch, head, pooling

    def forward(self, inputs: Packed, active: Tensor | None = None) -> Tensor:
        for layer in lora_layers(self.branch).values():
            layer.active = active
        count = len(next(self.head.parameters())) if active is None else len(active)
        return self.head(embed(self.branch, inputs, self.pooling, count), active)
