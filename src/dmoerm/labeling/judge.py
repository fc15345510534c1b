"""An LLM judge as a scorer of whole responses: the paper's generative baselines, zero-shot and few-shot.

prompt, responses → all pairs in both orders → verdicts → reward of a response: its mean probability to win a pair
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError
from ..labels import OVERALL, CapabilityLabel, content_digest, mismatch
from ..schema import Group, Prompt, Query
from .client import Endpoint
from .collect import collect_labels
from .questions import QuestionFormat, all_pairs, build_questions
from .runner import RunLimits, ask
from .store import AnswerStore


class LLMJudge:
    """Scores responses by an LLM's preferences. Recorded questions are not sent again.

    Args:
        endpoint: the judge's endpoint.
        store: path of the SQLite file that records all calls.
        examples: labeled groups, from which few-shot examples of the same task are drawn.
        shots: number of few-shot examples shown before each question.
        language: language of the question, `en` or `zh`.
        concurrency: maximum number of calls in flight.
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
        self.endpoint, self.store, self.limits = endpoint, Path(store), RunLimits(concurrency)
        self.question_format = QuestionFormat(overall=True, language=language, examples=examples, shots=shots)

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float]:
        """Return the rewards of the responses to one prompt, each from 0 to 1. See `score_all`."""
        return self.score_all([Query(prompt=prompt, responses=tuple(responses))])[0]

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """Return, per query, the mean probability of each response to win against another response.

        A pair without a usable answer counts 0.5.

        Raises:
            LabelingError: no call to the endpoint can succeed, or no question has a usable answer.
        """
        questions = list(build_questions(all_pairs(queries), self.question_format, self.endpoint))
        store = AnswerStore(self.store)
        try:
            ask(questions, self.endpoint, store, self.limits)
            labels = collect_labels(questions, store, self.question_format.judge_name(self.endpoint.model))
        finally:
            store.close()
        return rewards_from_labels(labels, queries)


def rewards_from_labels(labels: Iterable[CapabilityLabel], queries: Sequence[Query]) -> list[list[float]]:
    """Return the rewards that labels of the overall preference, live or recorded, give (see `LLMJudge.score_all`).

    Raises:
        DataError: there are pairs, and no label is usable for one of them.
    """
    labels = [label for label in labels if label.capability == OVERALL]
    by_group: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for label in labels:
        if label.mean is not None:
            pairs = by_group.setdefault((label.group, label.content), {})
            pairs[label.first, label.second], pairs[label.second, label.first] = label.mean, 1 - label.mean
    matches = [by_group.get((query.id, content_digest(query)), {}) for query in queries]
    if not any(matches) and any(len(set(query.responses)) > 1 for query in queries):
        cause, hint = mismatch(queries, labels)
        raise DataError(f"no label of the judge is usable: {cause}", hint=hint)
    return [_rewards(len(query.responses), pairs) for query, pairs in zip(queries, matches, strict=True)]


def _rewards(count: int, pairs: dict[tuple[int, int], float]) -> list[float]:
    wins = [[pairs.get((i, j), 0.5) for j in range(count) if j != i] for i in range(count)]
    return [sum(row) / len(row) if row else 0.5 for row in wins]
