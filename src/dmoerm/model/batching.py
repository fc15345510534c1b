"""Batches of queries of similar length for one pass, and the conversion to tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..chat.encoding import Encoded
from ..schema import Query
from .packing import Packed, pack

T = TypeVar("T")
_WINDOW_QUERIES, _WINDOW_CHARACTERS = 256, 1_000_000


def greedy(items: Iterable[T], size: Callable[[T], float], budget: float) -> Iterator[list[T]]:
    """Split items into consecutive batches whose sizes sum to the budget at most; a larger item is alone."""
    batch: list[T] = []
    total = 0.0
    for item in items:
        if batch and total + size(item) > budget:
            yield batch
            batch, total = [], 0.0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def batches(encoded: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    """Yield batches of indices of queries of similar length, the longest first.

    Args:
        budget: maximum number of tokens of a batch; a longer query is a batch by itself.
    """
    # `chunks` divides a query with a cut prompt, so it is a batch by itself
    sizes = [each.tokens if each.cut_prompt is None else budget + 1 for each in encoded]
    # the longest response in steps of 32 tokens, then the prompt: similar queries need little padding in attention
    shapes = [(max(map(len, each.responses)) // 32, len(each.prompt)) for each in encoded]
    order = sorted(range(len(encoded)), key=lambda i: (shapes[i], i), reverse=True)
    return greedy(order, sizes.__getitem__, budget)


def chunks(encoded: Encoded, budget: int) -> Iterator[tuple[int, Encoded]]:
    """Split a query into parts that repeat the prompt; yield the index of each part's first response, and the part.

    All responses of a part have the same prompt. A part has at most `budget` tokens, or twice the prompt's
    if that is more, so repeated prompts at most double the work. A longer response is a part by itself.
    """
    first, tokens, limit = 0, len(encoded.prompt), max(budget, 2 * len(encoded.prompt))
    for i, response in enumerate(encoded.responses):
        other_prompt = encoded.cut_prompt is not None and (i in encoded.truncated_at) != (first in encoded.truncated_at)
        if i > first and (other_prompt or tokens + len(response) > limit):
            yield first, encoded.part(first, i)
            first, tokens = i, len(encoded.prompt)
        tokens += len(response)
    yield first, encoded.part(first, len(encoded.responses))


def windows(queries: Iterable[Query]) -> Iterator[list[Query]]:
    """Split a stream into windows that fit in memory, within which queries of similar length share a pass."""
    least = _WINDOW_CHARACTERS / _WINDOW_QUERIES
    return greedy(queries, lambda query: max(least, sum(map(len, query.responses))), _WINDOW_CHARACTERS)


def pack_ids(encoded: Sequence[Encoded]) -> Packed:
    """Pack the token ids of several queries for one pass."""
    return pack([(torch.tensor(query.prompt), [torch.tensor(ids) for ids in query.responses]) for query in encoded])


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad rows (T_i, …) on the right with 0 to (B, max T, …); also return the mask (B, max T) of real entries."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
