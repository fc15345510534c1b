"""Which queries share a pass: chosen by their tokens, long with long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..chat.encoding import Encoded
from ..schema import Query
from .packing import Packed, pack

_WINDOW_QUERIES, _WINDOW_CHARACTERS = 256, 1_000_000


def batches(encoded: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    """Indices of queries, long with long, so that no batch has more than `budget` tokens (or is one query)."""
    rows: list[int] = []
    tokens = 0
    for i in sorted(range(len(encoded)), key=lambda i: (_shape(encoded[i]), i), reverse=True):
        if rows and tokens + encoded[i].tokens > budget:
            yield rows
            rows, tokens = [], 0
        rows.append(i)
        tokens += encoded[i].tokens
    if rows:
        yield rows


def chunks(encoded: Encoded, budget: int) -> Iterator[tuple[int, Encoded]]:
    """A query in parts, the prompt again in each: each part's first response, and the part.

    A part has at most `budget` tokens (or is one response); beside a long prompt as many again as the prompt has, so
    that prompts gone over again at most double the work.
    """
    first, tokens, most = 0, len(encoded.prompt), max(budget, 2 * len(encoded.prompt))
    for i, response in enumerate(encoded.responses):
        if i > first and tokens + len(response) > most:
            yield first, encoded.part(first, i)
            first, tokens = i, len(encoded.prompt)
        tokens += len(response)
    yield first, encoded.part(first, len(encoded.responses))


def _shape(query: Encoded) -> tuple[int, int]:
    """Queries of like shape waste little in attention: by the longest response, in steps, then by the prompt."""
    return max(map(len, query.responses)) // 32, len(query.prompt)


def windows(queries: Iterable[Query]) -> Iterator[list[Query]]:
    """A stream in chunks that are held at once, so that queries of like length can share a pass."""
    window: list[Query] = []
    size = 0
    for query in queries:
        window.append(query)
        size += sum(map(len, query.responses))
        if len(window) == _WINDOW_QUERIES or size > _WINDOW_CHARACTERS:
            yield window
            window, size = [], 0
    if window:
        yield window


def pack_ids(encoded: Sequence[Encoded]) -> Packed:
    """Several queries' token ids for one pass."""
    return pack([(torch.tensor(query.prompt), [torch.tensor(ids) for ids in query.responses]) for query in encoded])


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (T_i, …) → (B, max T, …), right-padded with 0, and the mask (B, max T) of real entries."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
