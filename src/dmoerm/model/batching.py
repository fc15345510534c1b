"""Queries become padded batches: chosen by their tokens, long with long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .backbone import Shared
from .encoding import Encoded


def batches(encoded: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    """Indices of queries, long with long, so that no padded batch has more than `budget` tokens (or is one query)."""
    rows: list[int] = []
    for i in sorted(range(len(encoded)), key=lambda i: (_shape(encoded[i]), i), reverse=True):
        if rows and _padded([encoded[j] for j in [*rows, i]]) > budget:
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


def _shape(query: Encoded) -> tuple[int, int]:
    """Queries of like shape waste little padding: first by the longest response, in steps, then by the prompt."""
    return max(map(len, query.responses)) // 32, len(query.prompt)


def _padded(encoded: Sequence[Encoded]) -> int:
    responses = [response for query in encoded for response in query.responses]
    return len(encoded) * max(len(q.prompt) for q in encoded) + len(responses) * max(map(len, responses))


def collate_ids(encoded: Sequence[Encoded]) -> Shared:
    """Token ids of several queries, right-padded with 0 (masked: the value does not matter)."""
    owner = [q for q, query in enumerate(encoded) for _ in query.responses]
    prompt, prompt_mask = pad([torch.tensor(query.prompt) for query in encoded])
    response, response_mask = pad([torch.tensor(ids) for query in encoded for ids in query.responses])
    return Shared(prompt, prompt_mask, response, response_mask, torch.tensor(owner))


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (T_i, …) → (B, max T, …), right-padded with 0, and the mask (B, max T) of real entries."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
