"""The rows that `score` writes, as a stream, for one model or an ensemble.

A row has: id, line (of the input file, from 1), task (the given or the most probable one; null: the general model
scored), route (task → probability), rewards, capabilities, uncertainty, truncated (each with one value per response)
and temperature. An empty response has the lowest reward, and null for capabilities and uncertainty. With `best`, a
row also has best (the index of the best response) and chosen (its text).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import DataError
from ..model import DMoERM
from ..model.batching import windows
from ..model.ensemble import combine_scores
from ..schema import Query
from ..scores import Score, Weights, adjusted, check_risk, check_weights

_LOG = logging.getLogger("dmoerm.scoring")
ScoreRow = dict[str, Any]
OnBad = Callable[[DataError], None]


class RowScorer(Protocol):
    """Scores a stream of queries."""

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[tuple[Query, ScoreRow]]:
        """Yield each query with its row, in order.

        Args:
            on_bad: called with the error of a query that cannot be scored, which is then skipped; None: it is raised.
        """
        ...


def written_rows(
    scorer: RowScorer, queries: Iterable[Query], on_bad: OnBad | None = None, best: bool = False
) -> Iterator[ScoreRow]:
    """Yield the rows to write.

    Args:
        best: add the response with the highest reward to each row.

    Raises:
        DataError: a query cannot be scored (without `on_bad`); with `best`, a reward is not finite.
    """
    for query, row in scorer.rows(queries, on_bad):
        yield row | _best(query, row["rewards"]) if best else row


def _best(query: Query, rewards: Sequence[float]) -> ScoreRow:
    """The response with the highest reward, and the first of equal ones."""
    if bad := [reward for reward in rewards if not math.isfinite(reward)]:
        message = "cannot choose the best response: a reward is not finite"
        raise DataError(message, file=query.position, value=bad[0], hint="score the text alone to find the cause")
    index = max(range(len(rewards)), key=rewards.__getitem__)
    return {"best": index, "chosen": query.responses[index]}


@dataclass(frozen=True)
class ModelRows:
    """A `RowScorer` of one DMoERM, or of an ensemble of several.

    Attributes:
        models: one model, or the members of an ensemble, which may differ in tasks and training data.
        batch_tokens: as in `DMoERM.score`.
        task: scores all rows as this task; None: the row's own task, otherwise each model's router decides, as also
            where a model does not have the row's task, which is logged once per task.
        ensemble: the combination: `mean`, `wco` or `uwo`; see `dmoerm.model.ensemble`.
        deterministic: makes scores independent of the batch; see `DMoERM.score_separately`.
        weights: capability → weight; see `Score.reweighted`. Members are combined after their rewards are reweighted.
        risk: see `Score.with_risk`. Members are combined after each one's rewards are lowered by its own uncertainty.
    """

    models: Sequence[DMoERM]
    batch_tokens: int | None = None
    task: str | None = None
    ensemble: str = "mean"
    deterministic: bool = False
    weights: Weights | None = None
    risk: float = 0.0

    def rows(self, queries: Iterable[Query], on_bad: OnBad | None = None) -> Iterator[tuple[Query, ScoreRow]]:
        """Yield each query with its row; see `RowScorer`.

        Raises:
            DataError: a model does not have the task, or a weight or the risk is invalid.
        """
        if self.task is not None:
            for model in self.models:
                model.task_model(self.task)
            queries = (query.model_copy(update={"task": self.task}) for query in queries)
        else:
            queries = self._with_known_tasks(queries)
        for model in self.models:
            check_weights(self.weights, model.config.tasks, [self.task])
        check_risk(self.risk)
        if on_bad is not None:
            queries = self._scorable(queries, on_bad)
        return ((query, _row(query, scores)) for query, scores in self._scores(queries))

    def _scores(self, queries: Iterable[Query]) -> Iterator[tuple[Query, list[Score]]]:
        for window in windows(queries):
            plain = [model.score_queries(window, self.batch_tokens, self.deterministic) for model in self.models]
            members = [adjusted(scores, self.weights, self.risk) for scores in plain]
            for query, *scores in zip(window, *members, strict=True):
                yield query, scores[0] if len(scores) == 1 else combine_scores(scores, self.ensemble)

    def _with_known_tasks(self, queries: Iterable[Query]) -> Iterator[Query]:
        """The queries, without tasks that a model does not have; the router decides for these."""
        unknown: set[str] = set()
        for query in queries:
            task = query.task
            if task is None or all(task in model.config.tasks for model in self.models):
                yield query
                continue
            if task not in unknown:
                known = ", ".join(self.models[0].config.tasks)
                _LOG.warning(
                    f"{query.position}: the router decides, for the model has no task {task!r}; it has {known}"
                )
            unknown.add(task)
            yield query.model_copy(update={"task": None})

    def _scorable(self, queries: Iterable[Query], on_bad: OnBad) -> Iterator[Query]:
        """The queries that every model accepts: their texts are not too long."""
        for query in queries:
            try:
                for model in self.models:
                    model.encoder.encode(query)
            except DataError as error:
                on_bad(error)
            else:
                yield query


def _row(query: Query, scores: Sequence[Score]) -> ScoreRow:
    first = scores[0]
    names = dict.fromkeys(name for score in scores for name in score.capabilities)
    known = any(score.uncertainty is not None for score in scores)
    return {
        "id": query.id,
        "line": query.line,
        "task": first.task,
        "route": first.route,
        "rewards": [score.reward for score in scores],
        "capabilities": {name: [score.capabilities.get(name) for score in scores] for name in names},
        "uncertainty": [score.uncertainty for score in scores] if known else None,
        "temperature": first.temperature,
        "truncated": [score.truncated for score in scores],
    }


@dataclass
class ScoreCounts:
    """Numbers of scored queries and responses; `tasks`: task → queries."""

    queries: int = 0
    responses: int = 0
    tasks: Counter[str] = field(default_factory=Counter)

    def add(self, task: str | None, responses: int) -> None:
        """Count one row."""
        self.queries += 1
        self.responses += responses
        self.tasks[task or "(general model)"] += 1

    def merge(self, other: ScoreCounts) -> None:
        """Add other counts."""
        self.queries += other.queries
        self.responses += other.responses
        self.tasks += other.tasks

    def summary(self) -> dict[str, Any]:
        """Return the counts for the results file."""
        return {"queries": self.queries, "responses": self.responses, "tasks": dict(sorted(self.tasks.items()))}
