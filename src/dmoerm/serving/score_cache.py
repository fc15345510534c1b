"""A cache of scores, for best-of-n and repeated evaluation: the same response to the same prompt is scored once.

A score belongs to the exact texts and the requested task, and a cache to one loaded model. Weights and risk are applied
after the cache, so requests with any of them share its entries. What is stored is the score that the model returned, so
a repeated request gets the same bits.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterator, Sequence

from ..schema import Query
from ..scores import Score
from .metrics import Metrics

Known = list[list[Score | None]]
"""The scores of queries as far as they are known, one list per query."""


class ScoreCache:
    """Scores of one model, least recently used ones are evicted first. Not for several threads.

    Args:
        entries: how many scores it holds, about 1 kB each; texts are not kept. 0: it is off.
        metrics: count the responses whose scores it has, and the others.
    """

    def __init__(self, entries: int, metrics: Metrics) -> None:
        self._entries, self._metrics = entries, metrics
        self._scores: collections.OrderedDict[bytes, Score] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def find(self, queries: Sequence[Query]) -> Known:
        """Return the known scores of the queries; None for the others."""
        if not self._entries:
            return [[None] * len(query.responses) for query in queries]
        known = [[self._get(key) for key in _keys(query)] for query in queries]
        hits = [score is not None for row in known for score in row]
        self._metrics.cache_hits.inc(sum(hits))
        self._metrics.cache_misses.inc(len(hits) - sum(hits))
        return known

    def store(self, queries: Sequence[Query], scores: Sequence[Sequence[Score]]) -> None:
        """Add the scores of the queries."""
        for query, row in zip(queries, scores, strict=True) if self._entries else ():
            for key, score in zip(_keys(query), row, strict=True):
                self._scores[key] = score
                self._scores.move_to_end(key)
        while len(self._scores) > self._entries:
            self._scores.popitem(last=False)

    def _get(self, key: bytes) -> Score | None:
        if (score := self._scores.get(key)) is not None:
            self._scores.move_to_end(key)
        return score


def unknown(queries: Sequence[Query], known: Known) -> list[Query]:
    """Return the queries with only the responses that were not known; queries without any are left out."""
    gaps = [
        tuple(text for text, score in zip(query.responses, row, strict=True) if score is None)
        for query, row in zip(queries, known, strict=True)
    ]
    pairs = zip(queries, gaps, strict=True)
    return [query.model_copy(update={"responses": texts}) for query, texts in pairs if texts]


def merged(known: Known, scored: Sequence[Sequence[Score]]) -> list[list[Score]]:
    """Return the known scores, with those of `unknown`'s queries in the gaps."""
    rest = iter([score for row in scored for score in row])
    return [[next(rest) if score is None else score for score in row] for row in known]


def _keys(query: Query) -> Iterator[bytes]:
    """Yield a digest of task, tools, prompt and response for each response."""
    content = query.prompt
    prompt = content if isinstance(content, str) else [message.model_dump(mode="json") for message in content]
    common = hashlib.sha256(json.dumps([query.task, query.tools, prompt]).encode())
    for response in query.responses:
        digest = common.copy()
        digest.update(response.encode())
        yield digest.digest()
