"""Methods of a comparison: DMoERM and the simpler models that one could deploy in its place.

    general             one model trained on all tasks: the single reward model
    per_task_routed     one model per task, chosen by the router
    per_task            the same with the task given: an oracle
    all_labels_routed   one model per task on overall and capability pairs together, chosen by the router
    all_labels          the same with the task given: an oracle that sees the same labels as DMoERM
    dmoerm              router, experts and aggregator end to end

A method of another package is one file that calls `register`. It is imported before the comparison, or it is an entry
point of the group `dmoerm.methods`.

Shapes: N responses to one prompt (in a pass: of all its prompts), k members of a method.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ..data.splits import Splits
from ..errors import ConfigError
from ..model.backbone import load_backbone
from ..model.heads import BranchScorer, Head
from ..model.layers import split_layers
from ..schema import Query
from ..training import Run
from ..training.examples import PreferenceExample
from ..training.phases import apply_base, train_base
from ..training.steps import step_name
from .results import METHODS
from .scored_groups import ScoringBatch

ENTRY_POINTS = "dmoerm.methods"
Array = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class MethodContext:
    """What a method is trained with: a finished run, and the groups that the run was trained on.

    Attributes:
        train, validation: the run's training part as it was split.
    """

    run: Run
    data: Splits
    train: Sequence[PreferenceExample]
    validation: Sequence[PreferenceExample]
    console: Console
    _results: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, train: Callable[[MethodContext], T]) -> T:
        """Return `train(self)`, computed at the first call: methods that share a part train it once."""
        if train not in self._results:
            self._results[train] = train(self)
        return self._results[train]

    @property
    def folder(self) -> Path:
        """The folder of the run's seed, which holds its other runs too."""
        return Path(self.run.config.output).parent


@dataclass(frozen=True)
class TrainedMethod:
    """A trained method; it has one of the two functions.

    Attributes:
        score: score a pass of the run: the rewards (k, N) of the method's k members.
        score_all: score queries without the run: one reward per response.
    """

    score: Callable[[ScoringBatch], Tensor] | None = None
    score_all: Callable[[Sequence[Query]], list[list[float]]] | None = None


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: in tables, files and options.
        description: one line for a report.
        train: train it, or read what an earlier call has stored; None if it does not exist for this run.
        combine: the rewards (k, N) of its members for the responses to one prompt → rewards (N,).
        default: whether a comparison includes it unless methods are named.
    """

    name: str
    description: str
    train: Callable[[MethodContext], TrainedMethod | None]
    combine: Callable[[Array], Array] = lambda rewards: rewards[0]  # of the only member
    default: bool = True


_methods: dict[str, Method] = {}


def register(*methods: Method) -> None:
    """Add methods to the registry. Raise `ConfigError` if another method has the same name.

    Example:
        >>> import torch
        >>> def train(context):
        ...     def score(batch):
        ...         lengths = [float(len(text)) for group in batch.groups for text in group.responses]
        ...         return torch.tensor([lengths])
        ...     return TrainedMethod(score)
        >>> register(Method("longest", "prefers long responses", train))  # doctest: +SKIP
    """
    for method in methods:
        if _methods.get(method.name, method) != method:
            raise ConfigError(f"{method.name!r} is a method of this comparison; give the other one another name")
        _methods[method.name] = method


def registered() -> dict[str, Method]:
    """Return all methods by name, those of entry points included; `dmoerm` is the last default method."""
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()  # imports the module once, which calls `register`
    return dict(sorted(_methods.items(), key=lambda item: (not item[1].default, item[0] == "dmoerm")))


def choose_methods(names: Sequence[str] = ()) -> list[Method]:
    """Return `dmoerm` and the named methods (none: the default ones). Raise `ConfigError` for an unknown name."""
    known = registered()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown method {unknown[0]!r}; use some of {', '.join(known)}")
    chosen = {*(names or (name for name, method in known.items() if method.default)), "dmoerm"}
    return [method for name, method in known.items() if name in chosen]


# --- the methods ---------------------------------------------------------------------------------------------------


def by_task(models: Mapping[str, Head] | Mapping[str, BranchScorer], routed: bool) -> TrainedMethod:
    """Return a method of one model per task: a head on the general branch, or a branch with its head.

    `routed` uses the router's likeliest task in place of the group's.
    """

    def score(batch: ScoringBatch) -> Tensor:
        tasks = batch.likeliest if routed else batch.tasks
        rewards = batch.embeddings.new_empty(len(batch.owner)).float()
        for task in dict.fromkeys(tasks):
            rows = [n for n, q in enumerate(batch.owner.tolist()) if tasks[q] == task]
            model = models[task]
            hidden = batch.hidden.select(rows) if isinstance(model, BranchScorer) else batch.embeddings[rows]
            rewards[rows] = model(hidden)
        return rewards[None]

    return TrainedMethod(score)


def _per_task(context: MethodContext, routed: bool) -> TrainedMethod:
    if context.run.frozen:
        return by_task(_stored_heads(context.run, "head"), routed)
    return TrainedMethod(lambda batch: batch.by_task(batch.likeliest if routed else batch.tasks, "per_task")[None])


def _all_labels(context: MethodContext, routed: bool) -> TrainedMethod:
    run = context.run
    if all(run.model.task_model(task).all_labels is not None for task in context.data.taxonomy.tasks):
        return by_task(_stored_heads(run, "all_labels"), routed)
    scorers = context.once(_train_all_labels)
    return by_task({task: scorer.head for task, scorer in scorers.items()} if run.frozen else scorers, routed)


def _stored_heads(run: Run, prefix: str) -> dict[str, Head]:
    """Return task → head of the step `phase1`, which the step `routing` may have replaced in the model."""
    heads: dict[str, Head] = {}
    for task in run.model.config.tasks:
        state, start = run.stored(step_name("phase1", task)), f"{prefix}."
        heads[task] = copy.deepcopy(run.model.task_model(task).base.head)
        heads[task].load_state_dict({n.removeprefix(start): t for n, t in state.items() if n.startswith(start)})
    return heads


def _train_all_labels(context: MethodContext) -> dict[str, BranchScorer]:
    """Train each task's model; validation is on the overall pairs, as for every model that gives a reward."""
    run, scorers = context.run, dict[str, BranchScorer]()
    step, fresh = run.config.phase1, run.frozen or not run.config.warm_start
    for task in context.data.taxonomy.tasks:
        name = step_name("baselines/all_labels", task)
        scorer = scorers[task] = fresh_scorer(run, name)
        if run.config.warm_start:
            scorer.head.load_state_dict(run.model.general.head.state_dict())
            if not run.frozen:
                scorer.branch.load_state_dict(copy.deepcopy(run.model.general.branch.state_dict()))
        examples, validation = ([e for e in part if e.task == task] for part in (context.train, context.validation))
        train = functools.partial(
            train_base, run, scorer, joined_pairs(examples), validation, step, fit_normalizer=fresh
        )
        apply_base(scorer, run.step(name, train))
    return scorers


def joined_pairs(examples: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    """Return the examples with their overall and capability pairs as one list of overall pairs."""
    return [e.with_pairs({None: [pair for pairs in e.pairs.values() for pair in pairs]}) for e in examples]


def fresh_scorer(run: Run, name: str) -> BranchScorer:
    """Return the pretrained branch with a new head, drawn by the step's seed."""
    general = run.model.general
    branch = general.branch
    if not run.frozen:
        decoder = load_backbone(run.config.backbone)[0]
        branch = split_layers(decoder, run.model.config.branch_layer)[1].to(run.model.device)  # pyright: ignore[reportArgumentType]
    head = copy.deepcopy(general.head)
    generator = torch.Generator().manual_seed(run.seed(name))
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.dim() > 1:
                spread = 1e-3 if parameter is head.score.weight else 0.02
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))  # drawn on the CPU
    return BranchScorer(branch, head, general.pooling).requires_grad_(False)


for _name, _train in {
    "general": lambda _: TrainedMethod(lambda batch: batch.output.general[None]),
    "per_task_routed": functools.partial(_per_task, routed=True),
    "per_task": functools.partial(_per_task, routed=False),
    "all_labels_routed": functools.partial(_all_labels, routed=True),
    "all_labels": functools.partial(_all_labels, routed=False),
    "dmoerm": lambda _: TrainedMethod(lambda batch: batch.output.reward[None]),
}.items():
    register(Method(_name, METHODS[_name], _train))
