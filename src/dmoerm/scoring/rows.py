"""The rows that `score` writes, as a stream, for one model or an ensemble.

A row has: id, task (null: the general model scored), route (task → probability), rewards, capabilities, uncertainty,
truncated (each with one value per response) and temperature. An empty response has the least reward, and null for
capabilities and uncertainty. Scorers that give only rewards leave the other columns empty. With `best`, a row also has
best (the index of the best response) and chosen (its text).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import DataError
from ..model import DMoERM
from ..model.batching import windows
from ..model.ensemble import joined
from ..schema import Query
from ..scores import Score

Row = dict[str, Any]
OnBad = Callable[[DataError], None]


class RowScorer(Protocol):
    """Scores a stream: one row a query, in order."""

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[tuple[Query, Row]]:
        """Each query with its row. One that cannot be scored is given to `on_bad` and passed over; without it,
        `DataError` is raised."""
        ...


def written_rows(
    scorer: RowScorer, queries: Iterable[Query], on_bad: OnBad | None = None, best: bool = False
) -> Iterator[Row]:
    """The rows that are written of a stream.

    Args:
        best: each row also says which response has the highest reward.

    Raises:
        DataError: a query that cannot be scored, without `on_bad`; with `best`, a reward that is no finite number.
    """
    for query, row in scorer.rows(queries, on_bad):
        yield row | _best(query, row["rewards"]) if best else row


def _best(query: Query, rewards: Sequence[float]) -> Row:
    """Of equal rewards the first one's."""
    if wrong := [reward for reward in rewards if not math.isfinite(reward)]:
        hint = "score the text alone to see why"
        raise DataError("no response is the best", field=f"query {query.id}", value=wrong[0], hint=hint)
    place = max(range(len(rewards)), key=rewards.__getitem__)
    return {"best": place, "chosen": query.responses[place]}


@dataclass(frozen=True)
class ModelRows:
    """A DMoERM as a `RowScorer`, or several as an ensemble.

    Attributes:
        models: one, or the ensemble's members, which may have other tasks and be trained on other data.
        batch_tokens: as in `DMoERM.score`.
        task: scores everything as this task; None: a row's own, else routed, by each model itself.
        ensemble: how several are combined: `mean`, `wco` or `uwo`; see `dmoerm.model.ensemble`.
        deterministic: makes scores independent of the batch; see `DMoERM.score_separately`.
    """

    models: Sequence[DMoERM]
    batch_tokens: int = 8192
    task: str | None = None
    ensemble: str = "mean"
    deterministic: bool = False

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[tuple[Query, Row]]:
        """See `RowScorer`. Raises `DataError` where a model has no such task."""
        if self.task is not None:
            for model in self.models:
                model.inner(self.task)
            queries = (query.model_copy(update={"task": self.task}) for query in queries)
        if on_bad is not None:
            queries = self._scorable(queries, on_bad)
        return ((query, _row(query, scores)) for query, scores in self._scored(queries))

    def _scored(self, queries: Iterable[Query]) -> Iterator[tuple[Query, list[Score]]]:
        for window in windows(queries):
            members = [model.score_queries(window, self.batch_tokens, self.deterministic) for model in self.models]
            for query, *scores in zip(window, *members, strict=True):
                yield query, scores[0] if len(scores) == 1 else joined(scores, self.ensemble)

    def _scorable(self, queries: Iterable[Query], on_bad: OnBad) -> Iterator[Query]:
        """Those that every model can take: of a known task, no longer than they may be."""
        for query in queries:
            try:
                for model in self.models:
                    if query.task is not None:
                        model.inner(query.task, f"query {query.id}")
                    model.encoder.encode(query)
            except DataError as error:
                on_bad(error)
            else:
                yield query


def _row(query: Query, scores: Sequence[Score]) -> Row:
    first = scores[0]
    names = dict.fromkeys(name for score in scores for name in score.capabilities)
    known = any(score.uncertainty is not None for score in scores)
    return {
        "id": query.id,
        "task": first.task,
        "route": first.route,
        "rewards": [score.reward for score in scores],
        "capabilities": {name: [score.capabilities.get(name) for score in scores] for name in names},
        "uncertainty": [score.uncertainty for score in scores] if known else None,
        "temperature": first.temperature,
        "truncated": [score.truncated for score in scores],
    }


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
