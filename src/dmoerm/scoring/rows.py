"""From queries to the rows that `score` writes, in a stream, whatever scores them.

A row has: id, task (null: the general model scored), route (task → probability), rewards, capabilities, uncertainty
(each with one number a response) and temperature. What only rewards leaves the others empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import DataError
from ..model import DMoERM
from ..model.batching import windows
from ..schema import Query
from ..scores import Score

Row = dict[str, Any]
OnBad = Callable[[DataError], None]


class RowScorer(Protocol):
    """Scores a stream: one row a query, in order."""

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[Row]:
        """A query that cannot be scored is given to `on_bad` and passed over; without it, `DataError` is raised."""
        ...


@dataclass(frozen=True)
class ModelRows:
    """A DMoERM as a `RowScorer`.

    Attributes:
        batch_tokens: as in `DMoERM.score`.
        task: scores everything as this task; None: a row's own, else routed.
    """

    model: DMoERM
    batch_tokens: int = 8192
    task: str | None = None

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[Row]:
        """See `RowScorer`. Raises `DataError` where the model has no such task."""
        if self.task is not None:
            self.model.inner(self.task)
            queries = (query.model_copy(update={"task": self.task}) for query in queries)
        if on_bad is not None:
            queries = self._scorable(queries, on_bad)
        return (_row(query, scores) for query, scores in self.model.score_stream(queries, self.batch_tokens))

    def _scorable(self, queries: Iterable[Query], on_bad: OnBad) -> Iterator[Query]:
        """Those that the model can take: of a known task, no longer than it may be."""
        for query in queries:
            try:
                if query.task is not None:
                    self.model.inner(query.task, f"query {query.id}")
                self.model.encoder.encode(query)
            except DataError as error:
                on_bad(error)
            else:
                yield query


class _Method(Protocol):
    def score_all(self, queries: Sequence[Query]) -> list[list[float]]: ...


@dataclass(frozen=True)
class MethodRows:
    """Any `dmoerm.evaluation.panel.Method` as a `RowScorer`: an ensemble, a judge, a classifier, a server."""

    method: _Method

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[Row]:
        """See `RowScorer`; what the method cannot score is always raised."""
        for window in windows(queries):
            for query, rewards in zip(window, self.method.score_all(window), strict=True):
                yield _columns(query, None) | {"rewards": list(rewards)}


def _row(query: Query, scores: Sequence[Score]) -> Row:
    first = scores[0]
    return _columns(query, first.task) | {
        "route": first.route,
        "rewards": [score.reward for score in scores],
        "capabilities": {name: [score.capabilities[name] for score in scores] for name in first.capabilities},
        "uncertainty": None if first.uncertainty is None else [score.uncertainty for score in scores],
        "temperature": first.temperature,
    }


def _columns(query: Query, task: str | None) -> Row:
    empty: Row = {"rewards": [], "capabilities": {}, "uncertainty": None, "temperature": None}
    return {"id": query.id, "task": task, "route": {}, **empty}


@dataclass
class Tally:
    """What has been scored; `tasks`: task → rows."""

    queries: int = 0
    responses: int = 0
    tasks: Counter[str] = field(default_factory=Counter)

    def take(self, task: str | None, responses: int) -> None:
        """Counts one row."""
        self.queries += 1
        self.responses += responses
        self.tasks[task or "(general model)"] += 1

    def add(self, other: Tally) -> None:
        """Counts what another has counted."""
        self.queries += other.queries
        self.responses += other.responses
        self.tasks += other.tasks

    def figures(self) -> dict[str, Any]:
        """As the results file has them."""
        return {"queries": self.queries, "responses": self.responses, "tasks": dict(sorted(self.tasks.items()))}
