"""Prompts and their responses as one row of tokens, without padding: how every pass through layers is laid out.

    tokens    p p p p | p p | r r r | r r | r r r r       prompts first, then responses; a response knows its prompt
    position  0 1 2 3 | 0 1 | 4 5 6 | 4 5 | 2 3 4 5       a response's positions go on where its prompt's end

Shapes: Q prompts, N responses, T tokens of all of them, d hidden width, k stacked rows, H heads, c a head's width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Layout:
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
        self._masks: dict[tuple[torch.dtype, bool, int], Tensor] = {}

    def to(self, device: Any) -> Layout:
        """The same on another device."""
        return self if torch.device(device) == self.device else Layout(self.prompts, self.responses, self.owner, device)

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
    def prompt_grid(self) -> Grid:
        """The prompts' tokens, a row each."""
        return Grid(_runs(self.prompts, 0), self.device)

    @functools.cached_property
    def response_grid(self) -> Grid:
        """The responses' tokens, a row each; places count from the first response's first token."""
        return Grid(_runs(self.responses, 0), self.device)

    @functools.cached_property
    def key_grid(self) -> Grid:
        """What a response's tokens may see, a row each: its prompt's tokens, then its own."""
        prompts, responses = _runs(self.prompts, 0), _runs(self.responses, self.prompt_tokens)
        return Grid([[*prompts[q], *own] for q, own in zip(self.owner, responses, strict=True)], self.device)

    def mask(self, dtype: torch.dtype, last: bool, k: int) -> Tensor:
        """(k · N, 1, R, P + R) for the responses' attention, added to it; with `last`, R is 1: their last tokens."""
        if (dtype, last, k) not in self._masks:
            steps = torch.zeros(1) if last else torch.arange(max(self.responses))
            first = torch.tensor(self._ends()) - 1 if last else torch.tensor(self.starts)
            hidden = torch.arange(self.key_grid.width) > (first[:, None] + steps)[:, :, None]
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)[:, None]
            self._masks[dtype, last, k] = mask.repeat(k, 1, 1, 1).to(self.device)
        return self._masks[dtype, last, k]

    def select(self, rows: Sequence[int]) -> tuple[Layout, Tensor]:
        """Only these responses and the prompts that they belong to; and the places of their tokens among the T."""
        kept = sorted({self.owner[n] for n in rows})
        number = {q: i for i, q in enumerate(kept)}
        prompts, responses = [self.prompts[q] for q in kept], [self.responses[n] for n in rows]
        layout = Layout(prompts, responses, [number[self.owner[n]] for n in rows], self.device)
        of_prompts, of_responses = _runs(self.prompts, 0), _runs(self.responses, self.prompt_tokens)
        places = [i for q in kept for i in of_prompts[q]] + [i for n in rows for i in of_responses[n]]
        return layout, torch.tensor(places, dtype=torch.long, device=self.device)


class Grid:
    """Rows of token places, right-padded to the same width, and the way back."""

    def __init__(self, rows: Sequence[Sequence[int]], device: torch.device) -> None:
        self.width = max(map(len, rows), default=0)
        self.rows = len(rows)
        flat = [i for row in rows for i in row]
        even = all(len(row) == self.width for row in rows)
        padded = [i for row in rows for i in [*row, *[row[-1]] * (self.width - len(row))]]
        self._in_order = even and flat == list(range(len(flat)))
        self._places = None if self._in_order else torch.tensor(padded, dtype=torch.long, device=device)
        back = [r * self.width + c for r, row in enumerate(rows) for c in range(len(row))]
        self._back = None if even else torch.tensor(back, dtype=torch.long, device=device)

    def pad(self, x: Tensor) -> Tensor:
        """(k, tokens, …) → (k · rows, width, …)."""
        found = x if self._places is None else x.index_select(1, self._places)
        return found.reshape(x.shape[0] * self.rows, self.width, *x.shape[2:])

    def unpad(self, x: Tensor, k: int) -> Tensor:
        """(k · rows, width, …) → (k, tokens, …)."""
        flat = x.reshape(k, self.rows * self.width, *x.shape[2:])
        return flat if self._back is None else flat.index_select(1, self._back)


class Packed(NamedTuple):
    """One pass's input: ids (T,), or hidden states (T, d), and whose they are."""

    tokens: Tensor
    layout: Layout

    def to(self, device: Any) -> Packed:
        """The same on another device."""
        return Packed(self.tokens.to(device), self.layout.to(device))

    def select(self, rows: Sequence[int]) -> Packed:
        """Only these responses, and the prompts that they belong to."""
        if list(rows) == list(range(len(self.layout.responses))):
            return self
        layout, places = self.layout.select(rows)
        return Packed(self.tokens[places], layout)

    def split(self) -> list[tuple[Tensor, list[Tensor]]]:
        """What `pack` was given: each prompt's part, and each of its responses'."""
        prompts = self.tokens[: self.layout.prompt_tokens].split(self.layout.prompts)
        found: list[tuple[Tensor, list[Tensor]]] = [(prompt, []) for prompt in prompts]
        responses = self.tokens[self.layout.prompt_tokens :].split(self.layout.responses)
        for q, response in zip(self.layout.owner, responses, strict=True):
            found[q][1].append(response)
        return found

    def prompt_means(self) -> Tensor:
        """(Q, d), the mean over each prompt's states, in float32."""
        states = self.tokens[: self.layout.prompt_tokens]
        return means(states[None], self.layout.of_prompt, self.layout.prompts)[0]


def pack(queries: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> Packed:
    """Several queries for one pass: the prompt's ids (P,) or states (P, d), and each response's (R,) or (R, d)."""
    responses = [r for _, each in queries for r in each]
    owner = [q for q, (_, each) in enumerate(queries) for _ in each]
    layout = Layout([len(p) for p, _ in queries], [len(r) for r in responses], owner)
    return Packed(torch.cat([*(p for p, _ in queries), *responses]), layout)


def means(states: Tensor, of: Tensor, lengths: Sequence[int]) -> Tensor:
    """(k, tokens, d) → (k, rows, d): the mean over each row's tokens, in float32; `of`: each token's row."""
    sums = torch.zeros(states.shape[0], len(lengths), states.shape[-1], device=states.device)
    sums = sums.index_add(1, of, states.float())
    return sums / torch.tensor(lengths, device=states.device)[:, None]


def _runs(lengths: Sequence[int], start: int) -> list[range]:
    runs: list[range] = []
    for n in lengths:
        runs.append(range(start, start + n))
        start += n
    return runs
