"""What a method of a comparison is: its name, how it is trained, how it scores and what it costs.

Torch is imported inside the functions that train and score, so that the report reads the descriptions without it.

Shapes: N responses to one prompt (in a pass: of all its prompts), k members of a method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...schema import Query

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ...data.splits import Splits
    from ...evaluation.scored_groups import ScoringBatch
    from ...training import Run
    from ...training.batches import PreferenceExample
    from ...training.run import Engine

Array = NDArray[np.float64]
T = TypeVar("T")


class QueryScorer(Protocol):
    """Anything that rewards responses; higher is better. Only differences within a prompt mean something."""

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """Return one reward per response for each query."""
        ...


@dataclass(frozen=True)
class MethodContext:
    """What a method is trained with: a finished run, and the groups that the run was trained on.

    Attributes:
        train, validation: the run's training part as it was split.
        members: single models in an ensemble.
        engine: where the steps of other runs are executed; None: in this process.
    """

    run: Run
    data: Splits
    train: Sequence[PreferenceExample]
    validation: Sequence[PreferenceExample]
    members: int
    console: Console
    engine: Engine | None = None
    _results: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, train: Callable[[MethodContext], T]) -> T:
        """Return `train(self)`, computed at the first call: methods that share a part train it once."""
        if train not in self._results:
            self._results[train] = train(self)
        return self._results[train]

    @property
    def folder(self) -> Path:
        """The folder of the run's condition and seed, which holds its other runs too."""
        return Path(self.run.config.output).parent


@dataclass(frozen=True)
class TrainedMethod:
    """A trained method. It has `score` or `score_all`.

    Attributes:
        score: scores a pass of the run: the rewards (k, N) of its k members, computed from what the batch has.
        score_all: scores queries by itself; its cost is not measured.
        steps: names, or prefixes of names, of the run's steps that it needs; its training time is their sum.
        parameters: trained parameters.
        timed: the function that is timed on a batch; None: `score`.
    """

    score: Callable[[ScoringBatch], Tensor] | None = None
    score_all: Callable[[Sequence[Query]], list[list[float]]] | None = None
    steps: Sequence[str] = ()
    parameters: int = 0
    timed: Callable[[ScoringBatch], object] | None = None


def only_member(rewards: Array) -> Array:
    """Return the rewards of a method with one member, (1, N) → (N,)."""
    return rewards[0]


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: of tables, files and options.
        description: one line for a report.
        family: `run` (part of every trained model), `baseline`, `ablation` (DMoERM without a part), or `external` (not
            trained here).
        color: of its marks in plots, as #rrggbb.
        train: trains it, or reads what an earlier call has stored; returns None if it does not exist for this run.
        combine: the rewards (k, N) of its members, for the responses to one prompt → rewards (N,).
        tasks: the tasks that it can score; None: all.
        key: what its rewards depend on besides name and description; a run stored with another key is measured again.
    """

    name: str
    description: str
    family: str
    color: str
    train: Callable[[MethodContext], TrainedMethod | None]
    combine: Callable[[Array], Array] = only_member
    tasks: frozenset[str] | None = None
    key: str = ""
