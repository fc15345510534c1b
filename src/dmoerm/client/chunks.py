"""Split queries into requests of bounded size, and join their scores again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from ..schema import Query
from ..scores import Score

MAX_RESPONSES, MAX_CHARACTERS = 128, 32_000
"""Limits of one request. A single prompt and response with more characters form a request of their own."""

T = TypeVar("T")


def split_queries(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """Yield the queries in order, in requests within the limits; a query that exceeds them is split."""
    parts = (part for query in queries for part in _split(query))
    return _bounded(parts, lambda part: (len(part.responses), _prompt_size(part) + sum(map(len, part.responses))))


def join_scores(queries: Sequence[Query], requests: Iterable[list[list[Score]]]) -> Iterator[list[Score]]:
    """Yield one list of scores per query, from the scores of the requests of `split_queries`."""
    scores = (score for request in requests for part in request for score in part)
    for query in queries:
        yield list(itertools.islice(scores, len(query.responses)))


def _split(query: Query) -> Iterator[Query]:
    limit = MAX_CHARACTERS - _prompt_size(query)
    for responses in _bounded(query.responses, lambda text: (1, len(text)), limit):
        yield query.model_copy(update={"responses": tuple(responses)})


def _prompt_size(query: Query) -> int:
    """Return the characters of the prompt, with those of the tools, which are sent and rendered with it."""
    return len(str(query.prompt)) + (len(json.dumps(query.tools)) if query.tools else 0)


def _bounded(
    items: Iterable[T], size_of: Callable[[T], tuple[int, int]], max_characters: int = MAX_CHARACTERS
) -> Iterator[list[T]]:
    """Yield lists of items in order, as long as the limits allow; an item that exceeds them is alone in its list.

    Args:
        items: the items.
        size_of: returns an item's number of responses and of characters.
        max_characters: limit of a list.
    """
    batch: list[T] = []
    total_responses = total_characters = 0
    for item in items:
        responses, characters = size_of(item)
        full = total_responses + responses > MAX_RESPONSES or total_characters + characters > max_characters
        if batch and full:
            yield batch
            batch, total_responses, total_characters = [], 0, 0
        batch.append(item)
        total_responses, total_characters = total_responses + responses, total_characters + characters
    if batch:
        yield batch
