"""Prompts and their responses as one row of tokens, without padding: the input of every pass through layers.

    tokens    p p p p | p p | r r r | r r | r r r r       prompts first, then responses; a response knows its prompt
    position  0 1 2 3 | 0 1 | 4 5 6 | 4 5 | 2 3 4 5       a response's positions go on where its prompt's end

Shapes: Q prompts, N responses, T tokens of all of them, d hidden width, k experts' rows, H heads, c a head's width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_WASTE, _SMALL = 1.25, 50_000  # a group's padded attention area: at most so many times the real one, and so much more


class Packing:
    """Which token belongs to whom.

    Args:
        prompts: the Q prompts' lengths.
        responses: the N responses' lengths.
        owner: each response's prompt, 0 … Q − 1.
    """

    def __init__(
        self, prompts: Sequence[int], responses: Sequence[int], owner: Sequence[int], device: Any = "cpu"
    ) -> None:
        self.prompts, self.responses, self.owner = list(prompts), list(responses), list(owner)
        self.device = torch.device(device)
        self.prompt_tokens = sum(self.prompts)

    def to(self, device: Any) -> Packing:
        """The same on another device."""
        return (
            self if torch.device(device) == self.device else Packing(self.prompts, self.responses, self.owner, device)
        )

    @property
    def starts(self) -> list[int]:
        """Each response's first position: its prompt's length."""
        return [self.prompts[q] for q in self.owner]

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt and response together."""
        return max([start + n for start, n in zip(self.starts, self.responses, strict=True)], default=0)

    @functools.cached_property
    def positions(self) -> Tensor:
        """(T,), each token's position in its own sequence."""
        prompts = [torch.arange(n) for n in self.prompts]
        return torch.cat([*prompts, *map(torch.arange, self.starts, self._ends())]).to(self.device)

    def _ends(self) -> list[int]:
        return [start + n for start, n in zip(self.starts, self.responses, strict=True)]

    @functools.cached_property
    def last(self) -> Tensor:
        """(N,), where each response's last token stands among the T tokens."""
        return (torch.tensor(self.responses).cumsum(0) - 1 + self.prompt_tokens).to(self.device)

    @functools.cached_property
    def of_prompt(self) -> Tensor:
        """For each token of the prompts, its prompt."""
        return torch.arange(len(self.prompts)).repeat_interleave(torch.tensor(self.prompts)).to(self.device)

    @functools.cached_property
    def of_response(self) -> Tensor:
        """For each token of the responses, its response."""
        return torch.arange(len(self.responses)).repeat_interleave(torch.tensor(self.responses)).to(self.device)

    @functools.cached_property
    def groups(self) -> list[AttentionGroup]:
        """The prompts with their responses in groups of like lengths: attention pads within a group only."""
        return [AttentionGroup(self, prompts) for prompts in _alike(self)]

    @functools.cached_property
    def order(self) -> dict[str, Tensor | None]:
        """What brings the groups' rows, one group after the other, back in place; None: they are in place.

        For the prompts' tokens (`prompts`), the responses' tokens (`responses`) and the responses (`last`).
        """
        return {
            name: _inverse([i for group in self.groups for i in getattr(group, name)], self.device)
            for name in ("prompts", "responses", "last")
        }

    def select(self, rows: Sequence[int]) -> tuple[Packing, Tensor]:
        """Only these responses and the prompts that they belong to; and the places of their tokens among the T."""
        kept = sorted({self.owner[n] for n in rows})
        number = {q: i for i, q in enumerate(kept)}
        prompts, responses = [self.prompts[q] for q in kept], [self.responses[n] for n in rows]
        packing = Packing(prompts, responses, [number[self.owner[n]] for n in rows], self.device)
        of_prompts, of_responses = _runs(self.prompts, 0), _runs(self.responses, self.prompt_tokens)
        places = [i for q in kept for i in of_prompts[q]] + [i for n in rows for i in of_responses[n]]
        return packing, torch.tensor(places, dtype=torch.long, device=self.device)


class AttentionGroup:
    """Some prompts with their responses, for attention.

    Attributes:
        prompts, responses: the places of their tokens among all prompts' tokens, and among all responses' tokens.
        last, rows: the places of the responses among the N, as a list and as a tensor.
        padded_prompts, padded_responses: a padded row a prompt, a response.
        padded_keys: what a response's tokens may see, a padded row a response: its prompt's tokens, then its own.
    """

    def __init__(self, packing: Packing, prompts: Sequence[int]) -> None:
        of_prompt, of_response = _runs(packing.prompts, 0), _runs(packing.responses, 0)
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
        self._masks: dict[tuple[torch.dtype, bool, int], Tensor] = {}
        self._device = device

    def mask(self, dtype: torch.dtype, last: bool, k: int) -> Tensor:
        """(k · rows, 1, R, P + R) for the responses' attention, added to it; with `last`, R is 1: their last tokens."""
        if (dtype, last, k) not in self._masks:
            steps = torch.zeros(1) if last else torch.arange(self.padded_responses.width)
            first = self._starts + self._lengths - 1 if last else self._starts
            hidden = torch.arange(self.padded_keys.width) > (first[:, None] + steps)[:, :, None]
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)[:, None]
            self._masks[dtype, last, k] = mask.repeat(k, 1, 1, 1).to(self._device)
        return self._masks[dtype, last, k]


class PaddedRows:
    """Rows of places among `total` tokens, right-padded to the same width, and the way back."""

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
        """(k, tokens, …) → (k · rows, width, …)."""
        found = x if self._pad_index is None else x.index_select(1, self._pad_index)
        return found.reshape(x.shape[0] * self.rows, self.width, *x.shape[2:])

    def unpad(self, x: Tensor, k: int) -> Tensor:
        """(k · rows, width, …) → (k, tokens, …)."""
        flat = x.reshape(k, self.rows * self.width, *x.shape[2:])
        return flat if self._unpad_index is None else flat.index_select(1, self._unpad_index)


class Packed(NamedTuple):
    """One pass's input: ids (T,), or hidden states (T, d), and whose they are."""

    tokens: Tensor
    packing: Packing

    def to(self, device: Any) -> Packed:
        """The same on another device."""
        return Packed(self.tokens.to(device), self.packing.to(device))

    def select(self, rows: Sequence[int]) -> Packed:
        """Only these responses, and the prompts that they belong to."""
        if list(rows) == list(range(len(self.packing.responses))):
            return self
        packing, places = self.packing.select(rows)
        return Packed(self.tokens[places], packing)

    def split(self) -> list[tuple[Tensor, list[Tensor]]]:
        """What `pack` was given: each prompt's part, and each of its responses'."""
        prompts = self.tokens[: self.packing.prompt_tokens].split(self.packing.prompts)
        found: list[tuple[Tensor, list[Tensor]]] = [(prompt, []) for prompt in prompts]
        responses = self.tokens[self.packing.prompt_tokens :].split(self.packing.responses)
        for q, response in zip(self.packing.owner, responses, strict=True):
            found[q][1].append(response)
        return found

    def prompt_means(self) -> Tensor:
        """(Q, d), the mean over each prompt's states, in float32."""
        states = self.tokens[: self.packing.prompt_tokens]
        return means(states[None], self.packing.of_prompt, self.packing.prompts)[0]


def pack(queries: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> Packed:
    """Several queries for one pass: the prompt's ids (P,) or states (P, d), and each response's (R,) or (R, d)."""
    responses = [r for _, each in queries for r in each]
    owner = [q for q, (_, each) in enumerate(queries) for _ in each]
    packing = Packing([len(p) for p, _ in queries], [len(r) for r in responses], owner)
    return Packed(torch.cat([*(p for p, _ in queries), *responses]), packing)


def means(states: Tensor, of: Tensor, lengths: Sequence[int]) -> Tensor:
    """(k, tokens, d) → (k, rows, d): the mean over each row's tokens, in float32; `of`: each token's row."""
    sums = torch.zeros(states.shape[0], len(lengths), states.shape[-1], device=states.device)
    sums = sums.index_add(1, of, states.float())
    return sums / torch.tensor(lengths, device=states.device)[:, None]


def _alike(packing: Packing) -> list[list[int]]:
    """The prompts in groups, so that attention's padded areas exceed the real ones by little."""
    areas: list[list[tuple[int, int]]] = [[] for _ in packing.prompts]  # rows and columns of each response's attention
    for q, n in zip(packing.owner, packing.responses, strict=True):
        areas[q].append((n, packing.prompts[q] + n))
    groups: list[list[int]] = []
    held: list[tuple[int, int]] = []
    for q in sorted(range(len(areas)), key=lambda q: max((k for _, k in areas[q]), default=0)):
        joined = [*held, *areas[q]]
        padded = len(joined) * max((r for r, _ in joined), default=0) * max((k for _, k in joined), default=0)
        if not groups or padded > _WASTE * sum(r * k for r, k in joined) + _SMALL:
            groups.append([])
            joined = areas[q]
        groups[-1].append(q)
        held = joined
    return [sorted(group) for group in groups]


def _inverse(places: Sequence[int], device: torch.device) -> Tensor | None:
    if list(places) == list(range(len(places))):
        return None
    return torch.tensor(places, dtype=torch.long, device=device).argsort()


def _runs(lengths: Sequence[int], start: int) -> list[range]:
    runs: list[range] = []
    for n in lengths:
        runs.append(range(start, start + n))
        start += n
    return runs
