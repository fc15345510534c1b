"""Scores of labeled groups by every method that a model contains, in one pass over the texts.

    general           the phase-0 model of all tasks together: the single reward model
    per_task_routed   the phase-1 model of the router's likeliest task: deployable
    per_task          the phase-1 model of the group's own task: an oracle, which is told the task. In a model with
                      soft heads (training/routing.py) both have these; in `compare`, those of the task's prompts
    dmoerm            end to end: the router alone decides

Other methods, such as baselines, score in the same pass (`scorers`).

Shapes: Q groups, N responses, T tasks, D width of an embedding, d width of a prompt embedding, k members of a method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..chat.encoding import Encoded
from ..model import DMoERM
from ..model.mixture import PassOutput
from ..model.packing import Packed, batches, pack, pack_ids
from ..model.router import Choice
from ..schema import Query
from ..scores import MIN_REWARD, bound_reward
from ..training.cache import ActivationCache
from ..training.processes import all_gather, broadcast, shard, sharded, smallest
from ..training.steps import Progress

Q = TypeVar("Q", bound=Query)


@dataclass(eq=False)
class ScoringBatch(Generic[Q]):
    """One pass; each output is computed once, when it is first read.

    Args:
        groups: Q groups.
        encoded: their token ids.
        cache: contains the trunk's activations; without it, they are computed.
    """

    model: DMoERM
    groups: Sequence[Q]
    encoded: Sequence[Encoded]
    cache: ActivationCache | None = None

    @functools.cached_property
    def ids(self) -> Packed:
        return pack_ids(self.encoded).to(self.model.device)

    @functools.cached_property
    def hidden(self) -> Packed:
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

    def by_task(self, tasks: Sequence[str], field: str) -> Tensor:
        """The model's scores for these tasks of the groups, whatever the router chooses, (N,).

        Args:
            field: `per_task` for the phase-1 scores, `reward` for the rewards.
        """
        scores = torch.empty_like(self.output.general)
        for q, task in enumerate(tasks):
            scores[self.owner == q] = getattr(self.output.of(q, task), field).float()
        return scores


def _same_on_all(values: list) -> list:
    """Return the main process's choice if all processes must make the same passes through the branches."""
    return broadcast(values) if sharded() else values


BatchScorer = Callable[[ScoringBatch], Tensor]
"""Scores the N responses of a pass: (k, N), one row per member."""


@dataclass(frozen=True)
class ScoredGroup(Generic[Q]):
    """The scores of one group, or of a query without preferences.

    Attributes:
        task: the group's task, or the router's likeliest task if the group has none.
        route: task → probability, from the prompt alone.
        chosen: the task whose model gives the `dmoerm` rewards, or the likeliest one of a mixture; None if the
            general model alone gives them.
        temperature: σ((reward_a − reward_b) / temperature) is `dmoerm`'s probability that a is better than b.
        rewards: method → one score per response; only differences within a group and method are meaningful.
        capabilities: capability of `task` → one score per response.
        members: scorer → (k, N), the rewards of each of its k members.
        empty: indices of the responses without text.
        uncertainty: (N,), the standard deviations of the `dmoerm` rewards, nan without a posterior; None if unknown.
    """

    group: Q
    task: str
    route: Mapping[str, float]
    chosen: str | None
    temperature: float
    rewards: Mapping[str, np.ndarray]
    capabilities: Mapping[str, np.ndarray]
    members: Mapping[str, np.ndarray] = field(default_factory=dict)
    empty: Sequence[int] = ()
    uncertainty: np.ndarray | None = None

    @property
    def likeliest(self) -> str:
        """The task that the router finds likeliest."""
        return max(self.route, key=lambda task: self.route[task])


def score_groups(
    model: DMoERM,
    groups: Sequence[Q],
    batch_tokens: int | None = None,
    console: Console | None = None,
    cache: ActivationCache | None = None,
    scorers: Mapping[str, BatchScorer] | None = None,
) -> list[ScoredGroup[Q]]:
    """Score all groups; return them in order. Several processes share the passes, and each returns all groups.

    Args:
        batch_tokens: as in `DMoERM.score`.
        cache: stores the trunk's activations for later evaluations; default: no cache.
        console: where to show progress; default: standard error.
        scorers: name → a further scorer of each pass; see `ScoredGroup.members`.

    Raises:
        DataError: a task that the model does not have, a text longer than the model reads.
    """
    for group in groups:
        if group.task is not None:
            model.task_model(group.task, group.position)
    encoded = [model.encoder.encode(group) for group in groups]
    made: list[dict[int, ScoredGroup[Q]]] = []
    progress = Progress(console)
    with progress.run(1 + (cache is not None)):
        if cache is not None:
            with progress.step("trunk's activations"):
                cache.fill(encoded, progress.count)
        passes, done = list(batches(encoded, smallest(model.pass_tokens(batch_tokens)))), 0
        if not sharded():  # else all processes make all passes, since a branch's passes depend on the tasks
            passes = shard(passes)
        total = sum(encoded[i].tokens for rows in passes for i in rows)
        with progress.step("evaluation"):
            for rows in passes:
                batch = ScoringBatch(model, [groups[i] for i in rows], [encoded[i] for i in rows], cache)
                made.append(dict(zip(rows, _score_batch(batch, scorers or {}), strict=True)))
                done += sum(e.tokens for e in batch.encoded)
                progress.count(done, total)
    by_index = {i: scored for part in all_gather(made) for i, scored in part.items()}
    return [by_index[i] for i in range(len(groups))]


@torch.no_grad()
def _score_batch(batch: ScoringBatch[Q], scorers: Mapping[str, BatchScorer]) -> list[ScoredGroup[Q]]:
    model, output, scored = batch.model, batch.output, []
    members = {scorer: scorer(batch) for scorer in dict.fromkeys(scorers.values())}  # methods may share one
    per_task, per_task_routed = (batch.by_task(tasks, "per_task") for tasks in (batch.tasks, batch.likeliest))
    for q, (group, task, choice) in enumerate(zip(batch.groups, batch.tasks, batch.choices, strict=True)):
        rows, empty = batch.owner == q, list(batch.encoded[q].empty_at)
        rewards = {
            "general": _array(output.general[rows]),
            "per_task_routed": _array(per_task_routed[rows]),
            "per_task": _array(per_task[rows]),
            "dmoerm": np.array([bound_reward(reward) for reward in _array(output.reward[rows]).tolist()]),
        }
        member_rewards = {scorer: _array(row[:, rows]) for scorer, row in members.items()}
        experts, capabilities = model.task_model(task).experts.capabilities, output.of(q, task).capabilities
        scored.append(
            ScoredGroup(
                group=group,
                task=task,
                route=dict(zip(model.router.tasks, batch.route[q].tolist(), strict=True)),
                chosen=choice.task,
                temperature=float(model.temperature(choice)),
                rewards={method: with_empty_lowest(row, empty) for method, row in rewards.items()},
                capabilities=dict(zip(experts, _array(capabilities.T), strict=True)),
                members={name: member_rewards[scorer] for name, scorer in scorers.items()},
                empty=empty,
                uncertainty=_array(output.uncertainty[rows]),
            )
        )
    return scored


def with_empty_lowest(rewards: np.ndarray, empty: Sequence[int]) -> np.ndarray:
    """Lower the rewards of empty responses below all others, as every path of the model does."""
    if not len(empty):
        return rewards
    others = np.delete(rewards, empty)
    rewards = rewards.copy()
    rewards[empty] = min(MIN_REWARD, others.min() - 1 if len(others) else MIN_REWARD)
    return rewards


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
