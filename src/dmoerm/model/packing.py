"""Prompts and their responses as one row of tokens without padding: the input of every pass through layers.

    tokens    p p p p | p p | r r r | r r | r r r r       prompts first, then responses; `owner` gives their prompts
    position  0 1 2 3 | 0 1 | 4 5 6 | 4 5 | 2 3 4 5       a response's positions continue its prompt's

Linear layers, norms and MLPs run on this row, so they see each prompt once and no padding. Only attention needs padded
rows. `AttentionGroup` makes them for prompts with similar lengths, since padding costs the product of both lengths.

Shapes: Q prompts, N responses, T tokens of all of them, P of the longest prompt and R of the longest response of a
group, d hidden width, k experts, H heads, c head width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Queries = Literal["prompts", "responses", "last"]

# Bound on a group's padded attention area (queries × keys): factor times the real area, plus a constant.
_MAX_WASTE, _FREE_AREA = 1.25, 50_000


class Packing:
    """The layout of a packed row: which tokens belong to which prompt or response.

    Args:
        prompts: (Q,), the prompts' lengths.
        responses: (N,), the responses' lengths.
        owner: (N,), the index of each response's prompt.
    """

    def __init__(
        self, prompts: Sequence[int], responses: Sequence[int], owner: Sequence[int], device: Any = "cpu"
    ) -> None:
        self.prompts, self.responses, self.owner = list(prompts), list(responses), list(owner)
        self.device = torch.device(device)
        self.prompt_tokens = sum(self.prompts)

    def to(self, device: Any) -> Packing:
        """Return the packing on a device."""
        return (
            self if torch.device(device) == self.device else Packing(self.prompts, self.responses, self.owner, device)
        )

    @property
    def starts(self) -> list[int]:
        """(N,), each response's first position, which is its prompt's length."""
        return [self.prompts[q] for q in self.owner]

    @functools.cached_property
    def longest(self) -> int:
        """The number of tokens of the longest prompt with its response."""
        return max([start + n for start, n in zip(self.starts, self.responses, strict=True)], default=0)

    @functools.cached_property
    def positions(self) -> Tensor:
        """(T,), each token's position in its prompt or, after its prompt, in its response."""
        prompts = [torch.arange(n) for n in self.prompts]
        return torch.cat([*prompts, *map(torch.arange, self.starts, self._ends())]).to(self.device)

    def _ends(self) -> list[int]:
        return [start + n for start, n in zip(self.starts, self.responses, strict=True)]

    @functools.cached_property
    def last(self) -> Tensor:
        """(N,), the index of each response's last token among the T tokens."""
        return (torch.tensor(self.responses).cumsum(0) - 1 + self.prompt_tokens).to(self.device)

    @functools.cached_property
    def of_prompt(self) -> Tensor:
        """For each token of the prompts, the index of its prompt."""
        return torch.arange(len(self.prompts)).repeat_interleave(torch.tensor(self.prompts)).to(self.device)

    @functools.cached_property
    def of_response(self) -> Tensor:
        """For each token of the responses, the index of its response."""
        return torch.arange(len(self.responses)).repeat_interleave(torch.tensor(self.responses)).to(self.device)

    @functools.cached_property
    def groups(self) -> list[AttentionGroup]:
        """The prompts with their responses in groups of similar lengths; attention pads within a group only."""
        return [AttentionGroup(self, prompts) for prompts in _group_by_length(self)]

    @functools.cached_property
    def order(self) -> dict[str, Tensor | None]:
        """The permutations from the order of the groups back to the order of the packing; None: the orders are equal.

        Keys: `prompts` for the prompts' tokens, `responses` for the responses' tokens, `last` for the responses.
        """
        return {
            name: _inverse([i for group in self.groups for i in getattr(group, name)], self.device)
            for name in ("prompts", "responses", "last")
        }

    def select(self, rows: Sequence[int]) -> tuple[Packing, Tensor]:
        """Select responses with their prompts; also return the indices of their tokens among the T tokens."""
        kept = sorted({self.owner[n] for n in rows})
        number = {q: i for i, q in enumerate(kept)}
        prompts, responses = [self.prompts[q] for q in kept], [self.responses[n] for n in rows]
        packing = Packing(prompts, responses, [number[self.owner[n]] for n in rows], self.device)
        of_prompts, of_responses = runs(self.prompts, 0), runs(self.responses, self.prompt_tokens)
        indices = [i for q in kept for i in of_prompts[q]] + [i for n in rows for i in of_responses[n]]
        return packing, torch.tensor(indices, dtype=torch.long, device=self.device)


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
        self._pad_index = None if whole else torch.tensor(padded, dtype=torch.long, device=device)
        back = [r * self.width + c for r, row in enumerate(rows) for c in range(len(row))]
        self._unpad_index = None if even else torch.tensor(back, dtype=torch.long, device=device)

    def pad(self, x: Tensor) -> Tensor:
        """Convert (k, tokens, …) to (k · rows, width, …)."""
        padded = x if self._pad_index is None else x.index_select(1, self._pad_index)
        return padded.reshape(x.shape[0] * self.rows, self.width, *x.shape[2:])

    def unpad(self, x: Tensor, k: int) -> Tensor:
        """Convert (k · rows, width, …) to (k, tokens, …)."""
        flat = x.reshape(k, self.rows * self.width, *x.shape[2:])
        return flat if self._unpad_index is None else flat.index_select(1, self._unpad_index)


class Packed(NamedTuple):
    """The input of a pass: ids (T,) or hidden states (T, d), and their packing."""

    tokens: Tensor
    packing: Packing

    def to(self, device: Any) -> Packed:
        """Return the tokens and their packing on a device."""
        return Packed(self.tokens.to(device), self.packing.to(device))

    def select(self, rows: Sequence[int]) -> Packed:
        """Select responses with their prompts."""
        if list(rows) == list(range(len(self.packing.responses))):
            return self
        packing, indices = self.packing.select(rows)
        return Packed(self.tokens[indices], packing)

    def split(self) -> list[tuple[Tensor, list[Tensor]]]:
        """Undo `pack`: return each prompt with its responses."""
        prompts = self.tokens[: self.packing.prompt_tokens].split(self.packing.prompts)
        queries: list[tuple[Tensor, list[Tensor]]] = [(prompt, []) for prompt in prompts]
        responses = self.tokens[self.packing.prompt_tokens :].split(self.packing.responses)
        for q, response in zip(self.packing.owner, responses, strict=True):
            queries[q][1].append(response)
        return queries

    def prompt_means(self) -> Tensor:
        """Return the mean (Q, d) over each prompt's states, in float32."""
        states = self.tokens[: self.packing.prompt_tokens]
        return means(states[None], self.packing.of_prompt, self.packing.prompts)[0]


def pack(queries: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> Packed:
    """Pack queries for one pass: each prompt's ids or states (P,) or (P, d), and its responses' (R,) or (R, d)."""
    responses = [r for _, each in queries for r in each]
    owner = [q for q, (_, each) in enumerate(queries) for _ in each]
    packing = Packing([len(p) for p, _ in queries], [len(r) for r in responses], owner)
    return Packed(torch.cat([*(p for p, _ in queries), *responses]), packing)


def means(states: Tensor, of: Tensor, lengths: Sequence[int]) -> Tensor:
    """Average states over the tokens of each row, in float32.

    Args:
        states: (k, tokens, d).
        of: (tokens,), the index of each token's row.
        lengths: (rows,), the rows' numbers of tokens.

    Returns:
        (k, rows, d).
    """
    sums = torch.zeros(states.shape[0], len(lengths), states.shape[-1], device=states.device)
    sums = sums.index_add(1, of, states.float())
    return sums / torch.tensor(lengths, device=states.device)[:, None]


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


def runs(lengths: Sequence[int], start: int) -> list[range]:
    """Return consecutive ranges of these lengths."""
    runs: list[range] = []
    for n in lengths:
        runs.append(range(start, start + n))
        start += n
    return runs
