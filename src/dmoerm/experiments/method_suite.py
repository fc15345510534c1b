"""All methods of one run: missing ones are trained, and all score in one pass over the texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from ..config import Config, changed
from ..data.splits import Splits, load_splits
from ..errors import CheckpointError, ConfigError
from ..evaluation.scored_groups import ScoredGroup, score_groups, with_empty_lowest
from ..schema import Query, is_empty
from ..training import Run, train
from ..training.calibration import temperature
from ..training.progress import Progress
from ..training.router import assign_tasks
from ..training.run import Engine, graph, prepare, run_steps, split_examples
from .methods import Method, MethodContext, TrainedMethod, choose_methods

Q = TypeVar("Q", bound=Query)
Settings = Mapping[str, Any]
"""Setting, named `a.b` → value: what distinguishes a condition of an experiment."""
MemberRewards = Mapping[str, np.ndarray]
"""Method → (k, N), the rewards of its k members for the responses of one query."""
Rewards = Mapping[str, np.ndarray]
"""Method → one reward per response."""
SHARD_QUERIES = 32
"""Queries scored together, here and on a cluster, because rewards differ in the last digits with batch composition."""


@dataclass(frozen=True)
class SuiteScorer:
    """One method of a suite as a `QueryScorer`, without caching activations."""

    suite: MethodSuite
    name: str

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `QueryScorer`."""
        scored = self.suite.score(queries, keep=False, console=Console(quiet=True))
        return [group.rewards[self.name].tolist() for group in scored]


@dataclass(frozen=True)
class MethodSuite:
    """A run and the methods beside it.

    Attributes:
        trained: method → the trained method.
    """

    context: MethodContext
    methods: Mapping[str, Method]
    trained: Mapping[str, TrainedMethod]

    @property
    def run(self) -> Run:
        """The run that the methods belong to."""
        return self.context.run

    @property
    def data(self) -> Splits:
        """The run's data."""
        return self.context.data

    @property
    def in_pass(self) -> list[str]:
        """The methods that score in the run's passes, in the order of reports."""
        return [name for name, method in self.trained.items() if method.score is not None]

    def check_in_pass(self, names: Sequence[str]) -> None:
        """Raise `ConfigError` if one of the methods does not score in the run's passes."""
        if missing := [name for name in names if name not in self.in_pass]:
            raise ConfigError(f"{missing[0]}: it does not exist for this run or is a run of its own; leave it out")

    def score(self, queries: Sequence[Q], keep: bool = True, console: Console | None = None) -> list[ScoredGroup[Q]]:
        """Score queries by every method of `in_pass`.

        Args:
            keep: cache the activations for other runs.
        """
        cache = self.run.cache if keep else None
        scorers = self._scorers()
        scored = score_groups(self.run.model, queries, None, console, cache, scorers)
        return [group.with_rewards(self.combine(self.by_method(group.members), group.empty)) for group in scored]

    def member_rewards(self, queries: Sequence[Query], console: Console | None = None) -> list[MemberRewards]:
        """Return each query's rewards by every member of every method of `in_pass`, before they are combined."""
        scored = score_groups(self.run.model, queries, None, console, self.run.cache, self._scorers())
        return [self.by_method(group.members) for group in scored]

    def combine(self, members: MemberRewards, empty: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """Combine the members' rewards (k, N) of all responses to a prompt to the methods' rewards (N,).

        Args:
            empty: the responses without text, which get less than all others and do not affect them.
        """
        rewards: dict[str, np.ndarray] = {}
        for name, rows in members.items():
            kept = np.setdiff1d(np.arange(rows.shape[1]), np.array(empty, dtype=int))
            row = np.zeros(rows.shape[1])
            if len(kept):
                row[kept] = self.methods[name].combine(rows[:, kept])
            rewards[name] = with_empty_lowest(row, empty)
        return rewards

    def temperatures(self, console: Console | None = None) -> dict[tuple[str, str], float]:
        """Fit T per method and task: σ((reward_a − reward_b) / T) predicts the labels of the validation prompts.

        A task without validation prompts uses its training groups. That of `dmoerm` is saved with the model.
        """
        temperatures: dict[tuple[str, str], float] = {}
        for task in self.data.taxonomy.tasks:
            parts = (
                [e for e in part if e.task == task and e.pairs.get(None)]
                for part in (self.context.validation, self.context.train)
            )
            examples = next((part for part in parts if part), [])
            scored = self.score([e.group for e in examples], console=console)
            for method in set(self.in_pass) - {"dmoerm"} if examples else ():
                margins = [
                    (s.rewards[method][pair.better] - s.rewards[method][pair.worse], 1 / len(e.pairs[None]))
                    for s, e in zip(scored, examples, strict=True)
                    for pair in e.pairs[None]
                ]
                differences, weights = np.array(margins).T
                unit = max(float(differences.std()), 1e-9)
                temperatures[method, task] = unit * temperature(differences / unit, weights)
        return temperatures

    def _scorers(self) -> dict[str, Any]:
        """Return name → scorer; methods that share a trained part share a scorer under the name of the first."""
        return {name: self.trained[name].score for name in dict.fromkeys(self._sources().values())}

    def _sources(self) -> dict[str, str]:
        first: dict[int, str] = {}
        return {name: first.setdefault(id(self.trained[name]), name) for name in self.in_pass}

    def by_method(self, members: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rewards of all methods of `in_pass` from those of the distinct scorers."""
        return {name: members[source] for name, source in self._sources().items()}


def run_settings(config: Config, condition: str, settings: Settings, seed: int) -> Config:
    """Return the settings of one condition and seed, with a folder of their own under `config.output`."""
    return in_subfolder(config, f"{condition}/seed{seed}/dmoerm", {**settings, "seed": seed})


def in_subfolder(config: Config, name: str, settings: Mapping[str, Any]) -> Config:
    """Return the settings of a run in a subfolder of the output and the storage of `config`."""
    folders = {"output": str(Path(config.output) / name)}
    if config.storage is not None:
        folders["storage"] = f"{config.storage.rstrip('/')}/{name}"
    return changed(config, {**settings, **folders})


def open_suite(
    config: Config,
    members: int = 5,
    console: Console | None = None,
    engine: Engine | None = None,
    methods: Sequence[Method] | None = None,
) -> MethodSuite:
    """Open a run and its methods; train what `config.output` does not contain.

    Args:
        members: single models in an ensemble; 0: only the methods that the run contains.
        engine: where the runs' steps are executed; None: in this process. Baselines are trained in this process.
        methods: the methods; None: the default ones.
    """
    return _suite(train(config, console, engine), load_splits(config), members, console, engine, methods)


def reopen_suite(config: Config, data: Splits, members: int, methods: Sequence[str] = ()) -> MethodSuite:
    """Open a finished suite; several processes may do so at once.

    Args:
        methods: their names; none: the default ones.

    Raises:
        CheckpointError: a step is missing.
    """
    run = prepare(config, data.taxonomy, Path(config.output), Progress(quiet=True))
    steps = graph(config, data.taxonomy)
    if missing := [step.name for step in steps if not run.finished(step.name)]:
        raise CheckpointError(
            f"{config.output}: step {missing[0]} is missing; use a folder that all machines can access"
        )
    run_steps(run, data, steps)
    run.model.eval()
    return _suite(run, data, members, methods=choose_methods(methods))


def _suite(
    run: Run,
    data: Splits,
    members: int,
    console: Console | None = None,
    engine: Engine | None = None,
    methods: Sequence[Method] | None = None,
) -> MethodSuite:
    train_part, validation = (
        assign_tasks(run, part) for part in split_examples(run, data.train, data.validation_prompts)
    )
    console = console or Console(quiet=True)
    context = MethodContext(run, data, train_part, validation, members, console, engine)
    chosen = choose_methods() if methods is None else methods
    kept = {method.name: method for method in chosen if members or method.family == "run"}
    if len(kept) < len({id(method) for method in chosen if members or method.family == "run"}):
        raise ConfigError("two methods have the same name; give one of them another")
    trained = {name: context.once(method.train) for name, method in kept.items()}
    return MethodSuite(context, kept, {name: result for name, result in trained.items() if result is not None})


Scoring = Callable[[MethodSuite, Sequence[Query], Console], list[MemberRewards]]
"""Returns each query's member rewards by a suite, scoring `SHARD_QUERIES` queries at a time."""


def score_here(suite: MethodSuite, queries: Sequence[Query], console: Console) -> list[MemberRewards]:
    """Score in this process (a `Scoring`); the activations are cached for the next suite."""
    rewards: list[MemberRewards] = []
    shards = [queries[i : i + SHARD_QUERIES] for i in range(0, len(queries), SHARD_QUERIES)]
    for shard in track(shards, "scoring", console=console, transient=True, disable=not console.is_terminal):
        rewards += suite.member_rewards(shard, console=Console(quiet=True))
    return rewards


def empty_responses(responses: Sequence[str]) -> list[int]:
    """Return the indices of the responses without text."""
    return [i for i, text in enumerate(responses) if is_empty(text)]
