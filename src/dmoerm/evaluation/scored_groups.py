"""A model's scores of labelled groups under every method that it holds, in one pass over the texts.

    general    phase 0's model of all tasks together: the single reward model
    per_task   the phase-1 model of the group's own task
    dmoerm     end to end: the router alone decides which task model scores

and, where they are given, the baselines that were trained beside it.

Shapes: Q groups of one batch, N their responses, T tasks, D an embedding's width.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from ..chat.encoding import Encoded
from ..model import DMoERM
from ..model.batching import pack_ids
from ..model.packing import Packed, pack
from ..model.task_model import TaskOutput
from ..schema import Query
from ..training.baselines import Baselines
from ..training.cache import ActivationCache
from ..training.processes import agreed, is_main, own, rejoined, sharded

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
    """

    group: Q
    task: str
    route: Mapping[str, float]
    chosen: str | None
    temperature: float
    rewards: Mapping[str, np.ndarray]
    capabilities: Mapping[str, np.ndarray]

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
    baselines: Baselines | None = None,
) -> list[ScoredGroup[Q]]:
    """Scores all groups; the result comes in their order. Several processes share the passes, and each gets all.

    Args:
        batch_tokens: as in `DMoERM.score`.
        cache: keeps the trunk's activations, so that a later evaluation need not compute them; None: nothing is kept.
        console: where progress is shown; None: on the standard error stream.
        baselines: their methods are scored in the same pass.

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
        if not sharded():  # else all make all: how often a pass goes through the branch hangs on its tasks
            passes = own(passes)
        total = sum(encoded[i].tokens for rows in passes for i in rows)
        for rows in passes:
            batch = [encoded[i] for i in rows]
            scored = _score_batch(model, [groups[i] for i in rows], batch, cache, baselines)
            made.append(dict(zip(rows, scored, strict=True)))
            done += sum(e.tokens for e in batch)
            advance("evaluation", done, total)
    found = {i: scored for part in rejoined(made) for i, scored in part.items()}
    return [found[i] for i in range(len(groups))]


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
def _score_batch(
    model: DMoERM,
    groups: Sequence[Q],
    encoded: Sequence[Encoded],
    cache: ActivationCache | None,
    baselines: Baselines | None,
) -> list[ScoredGroup[Q]]:
    hidden, prompts, route, base = _activations(model, encoded, cache)
    owners = torch.tensor(hidden.packing.owner, device=base.device)
    rewards = {"general": model.general.head(base)}
    if baselines is not None:
        rewards |= baselines.rewards(hidden, base, None if prompts is None else prompts[owners])
    chosen = [model.choose(row) for row in route]
    if sharded():  # all make this pass, and must go through the branch equally often
        chosen = agreed(chosen)
    own = [group.task or model.router.tasks[i] for group, i in zip(groups, route.argmax(-1).tolist(), strict=True)]
    wanted = [{task for task in pair if task} for pair in zip(own, chosen, strict=True)]
    outputs = _task_outputs(model, hidden, wanted, base, rewards["general"])
    return [
        _scored(
            model,
            group,
            own[q],
            chosen[q],
            dict(zip(model.router.tasks, route[q].tolist(), strict=True)),
            {method: row[owners == q] for method, row in rewards.items()},
            {task: outputs[q, task] for task in wanted[q]},
        )
        for q, group in enumerate(groups)
    ]


def _activations(
    model: DMoERM, encoded: Sequence[Encoded], cache: ActivationCache | None
) -> tuple[Packed, Tensor | None, Tensor, Tensor]:
    """States at the cut, the prompts' embeddings (Q, d) for the router (None: it has its own language model), task
    probabilities (Q, T), and the general model's embeddings (N, D)."""
    ids = pack_ids(encoded).to(model.device)
    hidden = model.hidden(ids) if cache is None else pack([cache.states(e) for e in encoded]).to(model.device)
    if model.router.language_model is not None:
        prompts, route = None, model.route(ids, hidden)
    elif cache is None:
        prompts, route = hidden.prompt_means(), model.route(ids, hidden)
    else:
        prompts = torch.stack([cache.prompt(e) for e in encoded]).to(model.device)
        route = model.router(prompts).softmax(-1)
    if cache is None or not cache.embedding:
        return hidden, prompts, route, model.general.embed(hidden)
    return hidden, prompts, route, torch.cat([cache.embeddings(e) for e in encoded]).to(model.device)


def _task_outputs(
    model: DMoERM, hidden: Packed, wanted: Sequence[set[str]], base: Tensor, general: Tensor
) -> dict[tuple[int, str], TaskOutput]:
    """(q, task) → what the task's model says of the q-th group, for all tasks wanted of it."""
    found: dict[tuple[int, str], TaskOutput] = {}
    owners = torch.tensor(hidden.packing.owner, device=base.device)
    for task in sorted(set().union(*wanted)):
        rows = [n for n, owner in enumerate(hidden.packing.owner) if task in wanted[owner]]
        shared = base[rows] if model.config.shared_branch else None
        output = model.task_model(task)(hidden.select(rows), general[rows], shared)
        places = owners[rows]
        for q in places.unique().tolist():
            found[q, task] = TaskOutput(*(part[places == q] for part in output))
    return found


def _scored(
    model: DMoERM,
    group: Q,
    own: str,
    chosen: str | None,
    route: dict[str, float],
    rewards: dict[str, Tensor],
    outputs: Mapping[str, TaskOutput],
) -> ScoredGroup[Q]:
    calibration = model.general_calibration if chosen is None else model.task_model(chosen).calibration
    rewards = rewards | {
        "per_task": outputs[own].per_task,
        "dmoerm": calibration(rewards["general"]) if chosen is None else outputs[chosen].reward,
    }
    names = model.task_model(own).experts.capabilities
    return ScoredGroup(
        group=group,
        task=own,
        route=route,
        chosen=chosen,
        temperature=float(calibration.temperature),
        rewards={method: row.double().cpu().numpy() for method, row in _ordered(rewards)},
        capabilities=dict(zip(names, outputs[own].capabilities.T.double().cpu().numpy(), strict=True)),
    )


def _ordered(rewards: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The methods that every model holds first, the others as they come."""
    yield from ((method, rewards[method]) for method in METHODS)
    yield from ((method, row) for method, row in rewards.items() if method not in METHODS)
