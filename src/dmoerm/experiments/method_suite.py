"""All methods of one run, trained where they are missing, and scored in one pass over the texts.

run        general, per_task, dmoerm                     `training.run`
baselines  ensemble_*, bagged_*, warm, gated             `training.baselines`, on the same groups and split
outside    any `Method`: a judge, a classifier, a server
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from ..config import Config, changed
from ..data.splits import Splits, load_splits
from ..errors import CheckpointError
from ..evaluation.scored_groups import METHODS, ScoredGroup, score_groups
from ..schema import Prompt, Query
from ..training import Run, train
from ..training.baselines import Baselines, train_baselines
from ..training.batches import PreferenceExample
from ..training.calibration import temperature
from ..training.graph import Engine, graph
from ..training.progress import Progress
from ..training.router import assign_tasks
from ..training.run import prepare, split_examples, train_groups

Q = TypeVar("Q", bound=Query)
Rewards = Mapping[str, np.ndarray]
"""Method → one reward a response."""
SHARD_QUERIES = 32
"""Queries scored together, wherever that is: the last digits of a reward hang on what shares its passes."""


class Method(Protocol):
    """What rewards responses; higher is better. Only differences within a prompt mean something."""

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """For each query a reward for each of its responses."""
        ...


def score(method: Method, prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """One prompt's rewards."""
    return method.score_all([Query(prompt=prompt, responses=tuple(responses))])[0]


@dataclass(frozen=True)
class RunMethod:
    """One method of a panel, live: nothing is kept of what it scores."""

    panel: Panel
    name: str

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `Method`."""
        return [
            one.rewards[self.name].tolist()
            for one in self.panel.score(queries, keep=False, console=Console(quiet=True))
        ]


@dataclass(frozen=True)
class Panel:
    """A run and the baselines beside it.

    Attributes:
        train, validation: the training part as it was divided.
    """

    run: Run
    baselines: Baselines | None
    data: Splits
    train: Sequence[PreferenceExample]
    validation: Sequence[PreferenceExample]

    @property
    def members(self) -> int:
        """Single models of an ensemble; 0: there are no baselines."""
        return len(self.baselines.ensembles["ensemble"].members) if self.baselines else 0

    @property
    def methods(self) -> tuple[str, ...]:
        """Their names, in a report's order."""
        if self.baselines is None:
            return METHODS
        names = [f"{name}_{how}" for name in self.baselines.ensembles for how in ("mean", "wco", "uwo")]
        return ("general", "per_task", *names, "warm", *["gated"] * (self.baselines.gated is not None), "dmoerm")

    def score(self, queries: Sequence[Q], keep: bool = True, console: Console | None = None) -> list[ScoredGroup[Q]]:
        """Every method's rewards; `keep`: the activations are cached, so that another run need not compute them."""
        cache = self.run.cache if keep else None
        return score_groups(self.run.model, queries, 8192, console, cache, self.baselines)

    def temperatures(self, console: Console | None = None) -> dict[tuple[str, str], float]:
        """Method and task → T: σ((reward_a − reward_b) / T) fits the labels of the validation prompts best.

        A task without such prompts takes its training groups. `dmoerm` has its own, saved with the model.
        """
        found: dict[tuple[str, str], float] = {}
        for task in self.data.taxonomy.tasks:
            parts = (
                [e for e in part if e.task == task and e.pairs.get(None)] for part in (self.validation, self.train)
            )
            examples = next((part for part in parts if part), [])
            scored = self.score([e.group for e in examples], console=console)
            for method in set(self.methods) - {"dmoerm"} if examples else ():
                margins = [
                    (s.rewards[method][pair.better] - s.rewards[method][pair.worse], 1 / len(e.pairs[None]))
                    for s, e in zip(scored, examples, strict=True)
                    for pair in e.pairs[None]
                ]
                differences, weights = np.array(margins).T
                unit = max(float(differences.std()), 1e-9)
                found[method, task] = unit * temperature(differences / unit, weights)
        return found


def run_settings(config: Config, condition: str, flips: tuple[float, float], seed: int) -> Config:
    """The run of one condition and seed: its noise, and its place under the experiments' folder `config.output`."""
    settings = {"seed": seed, "data.flip_scores": flips[0], "data.flip_capabilities": flips[1]}
    return placed(config, f"{condition}/seed{seed}/dmoerm", settings)


def placed(config: Config, name: str, settings: Mapping[str, Any]) -> Config:
    """The settings of a run in a folder of its own, under the output and the storage of `config`."""
    places = {"output": str(Path(config.output) / name)}
    if config.storage is not None:
        places["storage"] = f"{config.storage.rstrip('/')}/{name}"
    return changed(config, {**settings, **places})


def open_panel(config: Config, members: int = 5, console: Console | None = None, engine: Engine | None = None) -> Panel:
    """Trains what `config.output` does not hold yet, baselines with `members` single models an ensemble (0: none).

    Args:
        engine: where the run's steps are done; None: here. The baselines are trained here.
    """
    return _panel(train(config, console, engine), load_splits(config), members)


def reopen_panel(config: Config, data: Splits, members: int) -> Panel:
    """The panel that `open_panel` has left, for as many readers at once as there are.

    Raises `CheckpointError` where a step is missing.
    """
    run = prepare(config, data.taxonomy, Path(config.output), Progress(quiet=True))
    if missing := [step.name for step in graph(config, data.taxonomy) if not run.finished(step.name)]:
        raise CheckpointError(f"{config.output}: its step {missing[0]} is not there; let all machines reach the folder")
    train_groups(run, data)
    run.model.eval()
    return _panel(run, data, members)


def _panel(run: Run, data: Splits, members: int) -> Panel:
    train_part, validation = (assign_tasks(run, part) for part in split_examples(run, data.train))
    baselines = train_baselines(run, train_part, validation, members) if members else None
    return Panel(run, baselines, data, train_part, validation)


Scoring = Callable[[Panel, Sequence[Query], Console], list[Rewards]]
"""Gives each query's rewards, of a panel that is trained, `SHARD_QUERIES` queries at a time."""


def score_here(panel: Panel, queries: Sequence[Query], console: Console) -> list[Rewards]:
    """The `Scoring` of this process; the activations are kept for the next panel."""
    found: list[Rewards] = []
    shards = [queries[i : i + SHARD_QUERIES] for i in range(0, len(queries), SHARD_QUERIES)]
    for shard in track(shards, "scoring", console=console, transient=True, disable=not console.is_terminal):
        found += [one.rewards for one in panel.score(shard, console=Console(quiet=True))]
    return found
