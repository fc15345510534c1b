"""Groups that share a pass, and the model's outputs for them.

Shapes: Q groups, N responses, T tasks, D width of an embedding, d width of a prompt embedding.
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
from ..model.routing import Choice
from ..schema import Query
from ..training.cache import ActivationCache
from ..training.processes import broadcast, sharded

Q = TypeVar("Q", bound=Query)


class ScoringBatch(Generic[Q]):
    """One pass; each output is computed once, when it is first read.

    Args:
        groups: Q groups.
        encoded: their token ids.
        cache: contains the trunk's activations; None: they are computed.
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
        """The group of each response, (N,)."""
        sizes = torch.tensor([len(e.responses) for e in self.encoded])
        return torch.arange(len(self.encoded)).repeat_interleave(sizes).to(self.model.device)

    @functools.cached_property
    def prompts(self) -> Tensor | None:
        """The prompt embeddings, (Q, 2 d); None if the router has a separate language model."""
        if self.model.router.language_model is not None:
            return None
        if self.cache is None:
            return self.hidden.prompt_embeddings()
        return torch.stack([self.cache.prompt(e) for e in self.encoded]).to(self.model.device)

    @functools.cached_property
    def route(self) -> Tensor:
        """The task probabilities, (Q, T)."""
        if self.prompts is None:
            return self.model.route(self.ids, self.hidden)
        return self.model.router.probabilities(self.prompts)

    @functools.cached_property
    def choices(self) -> list[Choice]:
        """What scores the responses of each group by the router alone."""
        return _same_on_all(self.model.choose(self.route.cpu()))

    @functools.cached_property
    def likeliest(self) -> list[str]:
        """The router's likeliest task for each group."""
        return _same_on_all([self.model.router.tasks[i] for i in self.route.argmax(-1).tolist()])

    @functools.cached_property
    def tasks(self) -> list[str]:
        """The task of each group, or the router's likeliest task if the group has none."""
        return [group.task or likeliest for group, likeliest in zip(self.groups, self.likeliest, strict=True)]

    @functools.cached_property
    def embeddings(self) -> Tensor:
        """The responses' embeddings by the general model's branch, (N, D)."""
        if self.cache is None or not self.cache.embedding:
            return self.model.general.embed(self.hidden)
        return torch.cat([self.cache.embeddings(e) for e in self.encoded]).to(self.model.device)

    @functools.cached_property
    def output(self) -> PassOutput:
        """All scores of the model, for what the router chooses, its likeliest task and the group's task."""
        tasks = [{given, likeliest} for given, likeliest in zip(self.tasks, self.likeliest, strict=True)]
        return self.model.outputs(self.hidden, self.choices, tasks, self.embeddings)

    @functools.cached_property
    def per_task(self) -> Tensor:
        """The phase-1 scores for the group's task, (N,)."""
        return self._by_task(self.tasks, "per_task")

    @functools.cached_property
    def per_task_routed(self) -> Tensor:
        """The phase-1 scores for the router's likeliest task, (N,)."""
        return self._by_task(self.likeliest, "per_task")

    @functools.cached_property
    def given_task(self) -> Tensor:
        """The rewards by the model of the group's task, whatever the router chooses, (N,)."""
        return self._by_task(self.tasks, "reward")

    def _by_task(self, tasks: Sequence[str], field: str) -> Tensor:
        scores = torch.empty_like(self.output.general)
        for q, task in enumerate(tasks):
            scores[self.owner == q] = getattr(self.output.of(q, task), field).float()
        return scores


def _same_on_all(values: list) -> list:
    """Return the main process's choice if all processes must make the same passes through the branches."""
    return broadcast(values) if sharded() else values
