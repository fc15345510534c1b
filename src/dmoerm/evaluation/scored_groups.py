"""A model's scores of labeled groups under every method that it holds, in one pass over the texts.

    general    phase 0's model of all tasks together: the single reward model
    per_task   the phase-1 model of the group's own task
    dmoerm     end to end: the router alone decides which task's model scores

Other methods, such as baselines, score in the same pass (`scorers`).

Shapes: N responses to one prompt, k members of a method.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from ..model import DMoERM
from ..schema import Query
from ..scores import MIN_REWARD, bound_reward
from ..training.cache import ActivationCache
from ..training.processes import all_gather, is_main, shard, sharded
from .scoring_batch import ScoringBatch

BatchScorer = Callable[[ScoringBatch], Tensor]
"""Scores the N responses of a pass: (k, N), a row for each of its k members."""
Q = TypeVar("Q", bound=Query)
METHODS = ("general", "per_task", "dmoerm")
"""The methods that every trained model holds."""


@dataclass(frozen=True)
class ScoredGroup(Generic[Q]):
    """What the model says of one group, or of a query without a preference.

    Attributes:
        task: the group's own task, or the router's likeliest one where the group names none.
        route: task → probability, from the prompt alone.
        chosen: the task whose model gave the `dmoerm` rewards; None: the general model did.
        temperature: σ((reward_a − reward_b) / temperature) is `dmoerm`'s probability that a is better than b.
        rewards: method → one score a response; only differences within the group and method mean something.
        capabilities: capability of `task` → one score a response.
        members: scorer → (k, N), the rewards of each of its k members, as they are.
        empty: the responses without text.
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

    def with_rewards(self, rewards: Mapping[str, np.ndarray]) -> ScoredGroup[Q]:
        """The same group with other rewards."""
        return replace(self, rewards=rewards)

    @property
    def likeliest(self) -> str:
        """The task that the router finds likeliest."""
        return max(self.route, key=lambda task: self.route[task])


def score_groups(
    model: DMoERM,
    groups: Sequence[Q],
    batch_tokens: int = 8192,
    console: Console | None = None,
    cache: ActivationCache | None = None,
    scorers: Mapping[str, BatchScorer] | None = None,
) -> list[ScoredGroup[Q]]:
    """Score all groups; the result is in their order. Several processes share the passes, and each gets all.

    Args:
        batch_tokens: as in `DMoERM.score`.
        cache: keeps the trunk's activations for later evaluations; None: nothing is kept.
        console: where progress is shown; None: on the standard error stream.
        scorers: name → what scores the responses of each pass, too; see `ScoredGroup.members`.

    Raises:
        DataError: a task that the model does not have, a text longer than the model takes.
    """
    for group in groups:
        if group.task is not None:
            model.task_model(group.task, f"group {group.id}")
    encoded = [model.encoder.encode(Query(id=g.id, prompt=g.prompt, responses=g.responses)) for g in groups]
    made: list[dict[int, ScoredGroup[Q]]] = []
    with _progress(console) as advance:
        if cache is not None:
            cache.fill(encoded, functools.partial(advance, "trunk's activations"))
        passes, done = list(model.passes(encoded, batch_tokens)), 0
        if (
            not sharded()
        ):  # with sharded weights all processes make all passes: the passes through the branch depend on the tasks
            passes = shard(passes)
        total = sum(encoded[i].tokens for rows in passes for i in rows)
        for rows in passes:
            batch = ScoringBatch(model, [groups[i] for i in rows], [encoded[i] for i in rows], cache)
            made.append(dict(zip(rows, _score_batch(batch, scorers or {}), strict=True)))
            done += sum(e.tokens for e in batch.encoded)
            advance("evaluation", done, total)
    by_index = {i: scored for part in all_gather(made) for i, scored in part.items()}
    return [by_index[i] for i in range(len(groups))]


@contextlib.contextmanager
def _progress(console: Console | None) -> Iterator[Callable[[str, int, int], None]]:
    """What takes a stage's name, how far it is, and how far it has to go."""
    columns = (TextColumn("{task.description:44}"), BarColumn(24), TaskProgressColumn())
    console = console or Console(stderr=True, quiet=not is_main())
    bars = Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bars:
        bar = bars.add_task("", total=None)
        yield lambda stage, done, total: bars.update(bar, description=stage, completed=done, total=total)


@torch.no_grad()
def _score_batch(batch: ScoringBatch[Q], scorers: Mapping[str, BatchScorer]) -> list[ScoredGroup[Q]]:
    rewards = {"general": batch.output.general, "per_task": batch.per_task, "dmoerm": batch.output.reward}
    members = {name: scorer(batch) for name, scorer in scorers.items()}
    return [_scored(batch, q, rewards, members) for q in range(len(batch.groups))]


def _scored(
    batch: ScoringBatch[Q], q: int, rewards: Mapping[str, Tensor], members: Mapping[str, Tensor]
) -> ScoredGroup[Q]:
    model, task, chosen, rows = batch.model, batch.tasks[q], batch.chosen[q], batch.owner == q
    capabilities = batch.output.of(q, task).capabilities
    by_method = {method: _array(row[rows]) for method, row in rewards.items()}
    by_method["dmoerm"] = np.array([bound_reward(reward) for reward in by_method["dmoerm"].tolist()])
    empty = list(batch.encoded[q].empty_at)
    return ScoredGroup(
        group=batch.groups[q],
        task=task,
        route=dict(zip(model.router.tasks, batch.route[q].tolist(), strict=True)),
        chosen=chosen,
        temperature=float(model.calibration(chosen).temperature),
        rewards={method: with_empty_lowest(row, empty) for method, row in by_method.items()},
        capabilities=dict(zip(model.task_model(task).experts.capabilities, _array(capabilities.T), strict=True)),
        members={name: _array(row[:, rows]) for name, row in members.items()},
        empty=empty,
    )


def with_empty_lowest(rewards: np.ndarray, empty: Sequence[int]) -> np.ndarray:
    """Put the rewards of empty responses below all others, as every path of the model does."""
    if not len(empty):
        return rewards
    others = np.delete(rewards, empty)
    rewards = rewards.copy()
    rewards[empty] = min(MIN_REWARD, others.min() - 1 if len(others) else MIN_REWARD)
    return rewards


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
