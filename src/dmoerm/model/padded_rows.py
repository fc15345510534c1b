"""Prompts with their responses as padded rows, in buckets of similar lengths: what attention needs on a CPU.

Padding costs the product of a row's queries and keys, so prompts of different lengths are in different groups.

Shapes as in packing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .packing import Packing, runs
from .transfer import to_device

Queries = Literal["prompts", "responses", "last"]

# Bound on a group's padded attention area (queries × keys): factor times the real area, plus a constant.
_MAX_WASTE, _FREE_AREA = 1.25, 50_000


class Buckets:
    """The prompts of a packing with their responses in groups of similar lengths; see `Packing.derived`.

    Attributes:
        groups: attention pads within a group only.
        order: the permutations from the order of the groups back to the order of the packing; None: the orders are
            equal. Keys: `prompts` for the prompts' tokens, `responses` for the responses' tokens, `last` for the
            responses.
    """

    def __init__(self, packing: Packing) -> None:
        self.groups = [AttentionGroup(packing, prompts) for prompts in _group_by_length(packing)]
        self.order = {
            name: _inverse([i for group in self.groups for i in getattr(group, name)], packing.device)
            for name in ("prompts", "responses", "last")
        }


class AttentionGroup:
    """Prompts of similar lengths with their responses, as padded rows for attention.

    Attributes:
        prompts: indices of their tokens among all prompts' tokens.
        responses: indices of their tokens among all responses' tokens.
        last, rows: indices of the responses among the N, as a list and as a tensor.
        padded_prompts: one padded row per prompt.
        padded_responses: one padded row per response.
        padded_keys: one padded row per response with the tokens that it attends to: its prompt's, then its own.
    """

    def __init__(self, packing: Packing, prompts: Sequence[int]) -> None:
        of_prompt, of_response = runs(packing.prompts, 0), runs(packing.responses, 0)
        chosen = set(prompts)
        self.last = [n for n, q in enumerate(packing.owner) if q in chosen]
        self.rows = torch.tensor(self.last, dtype=torch.long, device=packing.device)
        self.prompts = [i for q in prompts for i in of_prompt[q]]
        self.responses = [i for n in self.last for i in of_response[n]]
        first, others, device = packing.prompt_tokens, sum(packing.responses), packing.device
        self.padded_prompts = PaddedRows([of_prompt[q] for q in prompts], first, device)
        self.padded_responses = PaddedRows([of_response[n] for n in self.last], others, device)
        keys = [[*of_prompt[packing.owner[n]], *(first + i for i in of_response[n])] for n in self.last]
        self.padded_keys = PaddedRows(keys, first + others, device)
        self._starts = torch.tensor([packing.prompts[packing.owner[n]] for n in self.last])
        self._lengths = torch.tensor([packing.responses[n] for n in self.last])
        self._masks: dict[tuple[torch.dtype, Queries, int, int | None], Tensor] = {}
        self._device = device

    def mask(self, dtype: torch.dtype, queries: Queries, k: int, window: int | None = None) -> Tensor:
        """Return the additive mask (k · rows, 1, queries, keys) of attention: 0, or −inf at hidden keys.

        Args:
            queries: the tokens that attend: the `prompts`' (to their prompts), the `responses`' or only their `last`
                tokens (to their prompts and themselves).
            k: the number of experts, whose rows follow each other.
            window: the number of tokens, itself included, to which a token attends; None: all before it.
        """
        if (key := (dtype, queries, k, window)) not in self._masks:
            hidden = self._hidden(queries, window)
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)[:, None]
            self._masks[key] = mask.repeat(k, 1, 1, 1).to(self._device)
        return self._masks[key]

    def _hidden(self, queries: Queries, window: int | None) -> Tensor:
        """Return which keys are hidden (rows, queries, keys)."""
        padded = self.padded_prompts if queries == "prompts" else self.padded_keys
        if queries == "prompts":
            positions = torch.arange(padded.width).expand(padded.rows, -1)
        elif queries == "last":
            positions = (self._starts + self._lengths - 1)[:, None]
        else:
            positions = self._starts[:, None] + torch.arange(self.padded_responses.width)
        keys, positions = torch.arange(padded.width), positions[:, :, None]
        hidden = keys > positions
        if window is None:
            return hidden
        # the positions of padding may exceed the keys, of which at least one must stay visible
        return hidden | (keys <= positions.clamp(max=padded.width - 1) - window)


class PaddedRows:
    """Conversion of tokens to right-padded rows and back.

    Padding repeats a row's last token, whose values are finite; the mask, or causality, hides it.

    Args:
        rows: the indices of each row's tokens among `total` tokens.
    """

    def __init__(self, rows: Sequence[Sequence[int]], total: int, device: torch.device) -> None:
        self.width = max(map(len, rows), default=0)
        self.rows = len(rows)
        flat = [i for row in rows for i in row]
        even = all(len(row) == self.width for row in rows)
        padded = [i for row in rows for i in [*row, *[row[-1]] * (self.width - len(row))]]
        whole = even and flat == list(range(total))
        self._pad_index = None if whole else to_device(torch.tensor(padded, dtype=torch.long), device)
        back = [r * self.width + c for r, row in enumerate(rows) for c in range(len(row))]
        self._unpad_index = None if even else to_device(torch.tensor(back, dtype=torch.long), device)

    def pad(self, x: Tensor) -> Tensor:
        """Convert (k, tokens, …) to (k · rows, width, …)."""
        padded = x if self._pad_index is None else x.index_select(1, self._pad_index)
        return padded.reshape(x.shape[0] * self.rows, self.width, *x.shape[2:])

    def unpad(self, x: Tensor, k: int) -> Tensor:
        """Convert (k · rows, width, …) to (k, tokens, …)."""
        flat = x.reshape(k, self.rows * self.width, *x.shape[2:])
        return flat if self._unpad_index is None else flat.index_select(1, self._unpad_index)


def _group_by_length(packing: Packing) -> list[list[int]]:
    """Group the prompts so that each group's padded attention area is within the bound.

    One group for all would pad every response to the longest one; a group per prompt would need a kernel launch each.
    """
    areas: list[list[tuple[int, int]]] = [[] for _ in packing.prompts]  # queries and keys of each response's attention
    for q, n in zip(packing.owner, packing.responses, strict=True):
        areas[q].append((n, packing.prompts[q] + n))
    groups: list[list[int]] = []
    group: list[tuple[int, int]] = []
    for q in sorted(range(len(areas)), key=lambda q: max((k for _, k in areas[q]), default=0)):
        joined = [*group, *areas[q]]
        padded = len(joined) * max((r for r, _ in joined), default=0) * max((k for _, k in joined), default=0)
        if not groups or padded > _MAX_WASTE * sum(r * k for r, k in joined) + _FREE_AREA:
            groups.append([])
            joined = areas[q]
        groups[-1].append(q)
        group = joined
    return [sorted(prompts) for prompts in groups]


def _inverse(order: Sequence[int], device: torch.device) -> Tensor | None:
    """Return the inverse of a permutation, or None for the identity."""
    if list(order) == list(range(len(order))):
        return None
    return torch.tensor(order, dtype=torch.long, device=device).argsort()
