"""Groups that share a pass, and what the model computes of them.

Shapes: Q groups, N responses, T tasks, D an embedding's width, d a prompt embedding's width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..chat.encoding import Encoded
from ..model import DMoERM
from ..model.batching import pack_ids
from ..model.output import PassOutput
from ..model.packing import Packed, pack
from ..schema import Query
from ..training.cache import ActivationCache
from ..training.processes import broadcast, sharded

Q = TypeVar("Q", bound=Query)


class ScoringBatch(Generic[Q]):
    """One pass: each part is computed once, when it is first read.

    Args:
        groups: Q groups; encoded: the same, encoded.
        cache: has the trunk's activations; None: they are computed.
    """

    def __init__(
        self, model: DMoERM, groups: Sequence[Q], encoded: Sequence[Encoded], cache: ActivationCache | None = None
    ) -> None:
        self.model, self.groups, self.encoded, self.cache = model, groups, encoded, cache

    @functools.cached_property
    def ids(self) -> Packed:
        """The token ids."""
        return pack_ids(self.encoded).to(self.model.device)

    @functools.cached_property
    def hidden(self) -> Packed:
        """The trunk's hidden states."""
        if self.cache is None:
            return self.model.hidden(self.ids)
        return pack([self.cache.states(e) for e in self.encoded]).to(self.model.device)

    @functools.cached_property
    def owner(self) -> Tensor:
        """(N,), each response's group."""
        sizes = torch.tensor([len(e.responses) for e in self.encoded])
        return torch.arange(len(self.encoded)).repeat_interleave(sizes).to(self.model.device)

    @functools.cached_property
    def prompts(self) -> Tensor | None:
        """(Q, d), the prompts' embeddings; None: the router has a language model of its own."""
        if self.model.router.language_model is not None:
            return None
        if self.cache is None:
            return self.hidden.prompt_means()
        return torch.stack([self.cache.prompt(e) for e in self.encoded]).to(self.model.device)

    @functools.cached_property
    def route(self) -> Tensor:
        """(Q, T), task probabilities."""
        if self.prompts is None:
            return self.model.route(self.ids, self.hidden)
        return self.model.router.probabilities(self.prompts)

    @functools.cached_property
    def chosen(self) -> list[str | None]:
        """(Q,), the task that the router chooses; None: the general model."""
        return _same_on_all([self.model.choose(row) for row in self.route])

    @functools.cached_property
    def tasks(self) -> list[str]:
        """(Q,), the group's own task, or the router's likeliest where the group names none."""
        likeliest = self.route.argmax(-1).tolist()
        names = self.model.router.tasks
        return _same_on_all([group.task or names[i] for group, i in zip(self.groups, likeliest, strict=True)])

    @functools.cached_property
    def embeddings(self) -> Tensor:
        """(N, D), the responses under the general model's branch."""
        if self.cache is None or not self.cache.embedding:
            return self.model.general.embed(self.hidden)
        return torch.cat([self.cache.embeddings(e) for e in self.encoded]).to(self.model.device)

    @functools.cached_property
    def output(self) -> PassOutput:
        """Every score of the model, by the task that the router chooses and by the group's own."""
        return self.model.outputs(self.hidden, self.chosen, self.tasks, self.embeddings)

    @functools.cached_property
    def per_task(self) -> Tensor:
        """(N,), the phase-1 score of the group's own task."""
        scores = torch.empty_like(self.output.general)
        for q, task in enumerate(self.tasks):
            scores[self.owner == q] = self.output.of(q, task).per_task
        return scores


def _same_on_all(values: list) -> list:
    """The main process's choice where all processes must go through the branch equally often."""
    return broadcast(values) if sharded() else values
