"""An LLM judge as a scorer of whole responses: the generative baselines, zero-shot and few-shot.

prompt, responses → all pairs in both orders → verdicts → a response's reward: how often it beats another
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..labels import Label, content_digest
from ..schema import Group, Prompt, Query
from .client import Endpoint
from .collect import collect
from .questions import Form, all_pairs, questions
from .run import ask
from .store import Store


class LLMJudge:
    """Scores responses by an LLM's preferences; what was asked once is in the store and is not asked again.

    Args:
        endpoint: the judge.
        store: the SQLite file of all calls.
        examples, shots: so many pairs of labeled groups of the same task are shown before each question.
        language: of the question.
        concurrency: calls in flight.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: str | Path,
        examples: Sequence[Group] = (),
        shots: int = 0,
        language: str = "en",
        concurrency: int = 16,
    ) -> None:
        self.endpoint, self.store, self.concurrency = endpoint, Path(store), concurrency
        self.form = Form(overall=True, language=language, examples=examples, shots=shots)

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """Rewards, 0 to 1, higher is better; the same as `score_all` on one query."""
        return self.score_all([Query(prompt=prompt, responses=tuple(responses))])[0]

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """For each query its responses' mean probability to be preferred to another; unanswered pairs count 0.5.

        Raises:
            LabelingError: no call to the endpoint can succeed.
        """
        asked = list(questions(all_pairs(queries), self.form, self.endpoint))
        store = Store(self.store)
        try:
            ask(asked, self.endpoint, store, self.concurrency)
            labels = collect(asked, store, self.form.judge(self.endpoint.model))
        finally:
            store.close()
        return rewards(labels, queries)


def rewards(labels: Iterable[Label], queries: Sequence[Query]) -> list[list[float]]:
    """What labels of `overall` come to as rewards (see `LLMJudge.score_all`), live or recorded."""
    found: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for label in labels:
        if label.mean is not None:
            pairs = found.setdefault((label.group, label.content), {})
            pairs[label.first, label.second], pairs[label.second, label.first] = label.mean, 1 - label.mean
    made = []
    for query in queries:
        pairs = found.get((query.id, content_digest(query)), {})
        count = len(query.responses)
        others = [[pairs.get((i, j), 0.5) for j in range(count) if j != i] for i in range(count)]
        made.append([sum(row) / len(row) if row else 0.5 for row in others])
    return made
