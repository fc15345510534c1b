"""Prompts and their responses as one row of tokens without padding: the input of every pass through layers.

    tokens    p p p p | p p | r r r | r r | r r r r       prompts first, then responses; `owner` gives their prompts
    position  0 1 2 3 | 0 1 | 4 5 6 | 4 5 | 2 3 4 5       a response's positions continue its prompt's

Linear layers, norms and MLPs run on this row, so they see each prompt once and no padding. Attention runs on the row as
it is (flex_attention.py), or on padded rows made of it (attention.py).

Shapes: Q prompts, N responses, T tokens of all of them, d hidden width, k experts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..chat.encoding import Encoded
from ..schema import Query

T = TypeVar("T")
_WINDOW_QUERIES, _WINDOW_CHARACTERS = 256, 1_000_000
Outputs = Literal["all", "responses", "last"]
"""Which tokens' states a pass returns: all T, the responses' or the N responses' last ones."""


class Packing:
    """The layout of a packed row: which tokens belong to which prompt or response.

    The numbers exist twice: as lists on the host, and as one table of indices on the device, which moves there in one
    copy. Code within a pass reads the table and never waits for the device.

    Args:
        prompts, responses: (Q,) and (N,), their lengths.
        owner: (N,), the index of each response's prompt.
        table: all indices below, one after the other; computed if None.

    Attributes:
        positions: (T,), each token's position in its prompt or, after its prompt, in its response.
        of_prompt, of_response: for each token of the prompts (responses), the index of its prompt (response).
        last: (N,), the index of each response's last token among the T tokens.
        prompt_lengths, response_lengths, owners: the arguments as tensors.
    """

    def __init__(
        self,
        prompts: Sequence[int],
        responses: Sequence[int],
        owner: Sequence[int],
        device: Any = "cpu",
        table: Tensor | None = None,
    ) -> None:
        self.prompts, self.responses, self.owner = list(prompts), list(responses), list(owner)
        self.device = torch.device(device)
        self.prompt_tokens, tokens = sum(self.prompts), sum(self.prompts) + sum(self.responses)
        self._derived: dict[Any, Any] = {}
        self._table = to_device(self._computed() if table is None else table, self.device)
        q, n = len(self.prompts), len(self.responses)
        parts = self._table.split([tokens, self.prompt_tokens, tokens - self.prompt_tokens, n, q, n, n])
        self.positions, self.of_prompt, self.of_response, self.last = parts[:4]
        self.prompt_lengths, self.response_lengths, self.owners = parts[4:]

    def _computed(self) -> Tensor:
        numbers = self.prompts, self.responses, self.owner
        prompts, responses, owner = (torch.tensor(x, dtype=torch.long) for x in numbers)
        of_prompt = torch.arange(len(prompts)).repeat_interleave(prompts)
        of_response = torch.arange(len(responses)).repeat_interleave(responses)
        ends = responses.cumsum(0)
        positions = (
            torch.arange(self.prompt_tokens) - (prompts.cumsum(0) - prompts)[of_prompt],
            torch.arange(len(of_response)) - (ends - responses - prompts[owner])[of_response],
        )
        last = ends - 1 + self.prompt_tokens
        return torch.cat([*positions, of_prompt, of_response, last, prompts, responses, owner])

    def to(self, device: Any) -> Packing:
        """Return the packing on a device."""
        if torch.device(device) == self.device:
            return self
        return Packing(self.prompts, self.responses, self.owner, device, self._table)

    def derived(self, make: Callable[[Packing], T]) -> T:
        """Return `make(self)`, computed once: all layers of a pass share what attention derives from the layout."""
        if make not in self._derived:
            self._derived[make] = make(self)
        return self._derived[make]

    @property
    def starts(self) -> list[int]:
        """(N,), each response's first position, which is its prompt's length."""
        return [self.prompts[q] for q in self.owner]

    @functools.cached_property
    def longest(self) -> int:
        """The number of tokens of the longest prompt with its response."""
        return max([start + n for start, n in zip(self.starts, self.responses, strict=True)], default=0)

    def index(self, rows: Sequence[int], count: int | None = None) -> Tensor | slice:
        """Return an index of rows on the device: a slice, which needs no copy, if they are all `count` in order.

        `count` is by default N, the number of responses.
        """
        if list(rows) == list(range(len(self.responses) if count is None else count)):
            return slice(None)
        return to_device(torch.tensor(rows, dtype=torch.long), self.device)


class Packed(NamedTuple):
    """The input of a pass: ids (T,) or hidden states (T, d), and their packing."""

    tokens: Tensor
    packing: Packing

    def to(self, device: Any) -> Packed:
        """Return the tokens and their packing on a device."""
        return Packed(to_device(self.tokens, device), self.packing.to(device))

    def select(self, rows: Sequence[int]) -> Packed:
        """Select responses with their prompts."""
        whole = self.packing
        if list(rows) == list(range(len(whole.responses))):
            return self
        kept = sorted({whole.owner[n] for n in rows})
        number = {q: i for i, q in enumerate(kept)}
        prompts, responses = [whole.prompts[q] for q in kept], [whole.responses[n] for n in rows]
        packing = Packing(prompts, responses, [number[whole.owner[n]] for n in rows], whole.device)
        of_prompts, of_responses = runs(whole.prompts), runs(whole.responses, whole.prompt_tokens)
        indices = [i for q in kept for i in of_prompts[q]] + [i for n in rows for i in of_responses[n]]
        return Packed(self.tokens[to_device(torch.tensor(indices, dtype=torch.long), whole.device)], packing)

    def split(self) -> list[tuple[Tensor, list[Tensor]]]:
        """Undo `pack`: return each prompt with its responses."""
        prompts = self.tokens[: self.packing.prompt_tokens].split(self.packing.prompts)
        queries: list[tuple[Tensor, list[Tensor]]] = [(prompt, []) for prompt in prompts]
        responses = self.tokens[self.packing.prompt_tokens :].split(self.packing.responses)
        for q, response in zip(self.packing.owner, responses, strict=True):
            queries[q][1].append(response)
        return queries

    def prompt_embeddings(self) -> Tensor:
        """Return each prompt's embedding (Q, 2 d), in float32: the mean of its states, and the last of them.

        The last token has read the whole prompt. With both, the router confuses fewer tasks than with either alone.
        """
        lengths = self.packing.prompt_lengths
        states = self.tokens[: self.packing.prompt_tokens]
        mean = means(states[None], self.packing.of_prompt, lengths)[0]
        return torch.cat([mean, states[lengths.cumsum(0) - 1].float()], 1)


def pack(queries: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> Packed:
    """Pack queries for one pass: each prompt's ids or states (P,) or (P, d), and its responses' (R,) or (R, d)."""
    responses = [r for _, each in queries for r in each]
    owner = [q for q, (_, each) in enumerate(queries) for _ in each]
    packing = Packing([len(p) for p, _ in queries], [len(r) for r in responses], owner)
    return Packed(torch.cat([*(p for p, _ in queries), *responses]), packing)


def pack_ids(encoded: Sequence[Encoded]) -> Packed:
    """Pack the token ids of several queries for one pass."""
    return pack([(torch.tensor(query.prompt), [torch.tensor(ids) for ids in query.responses]) for query in encoded])


def means(states: Tensor, of: Tensor, lengths: Tensor) -> Tensor:
    """Return the means (k, rows, d) of states (k, tokens, d) over the tokens of each row, in float32.

    Args:
        of: (tokens,), the index of each token's row.
        lengths: (rows,), the rows' numbers of tokens.
    """
    sums = torch.zeros(states.shape[0], len(lengths), states.shape[-1], device=states.device)
    return sums.index_add(1, of, states.float()) / lengths[:, None]


def runs(lengths: Sequence[int], start: int = 0) -> list[range]:
    """Return consecutive ranges of these lengths."""
    ends = list(itertools.accumulate(lengths, initial=start))
    return [range(*pair) for pair in itertools.pairwise(ends)]


class PaddedRows:
    """Conversion of packed tokens to right-padded rows and back.

        tokens 0 1 2 3 4   rows [[0, 1, 2], [3, 4]]   padded 0 1 2
                                                             3 4 4

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
        """Undo `pad`: convert (k · rows, width, …) to (k, tokens, …)."""
        flat = x.reshape(k, self.rows * self.width, *x.shape[2:])
        return flat if self._unpad_index is None else flat.index_select(1, self._unpad_index)


def to_device(tensor: Tensor, device: Any) -> Tensor:
    """Return a tensor on a device. A copy to an accelerator does not wait; one to the CPU must, to be complete."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


def transfer(tensors: Sequence[Tensor], device: Any) -> list[Tensor]:
    """Return small tensors on a device by one copy per dtype, since each copy has a fixed cost; see `to_device`."""
    device = torch.device(device)
    if all(tensor.device == device for tensor in tensors):
        return list(tensors)
    moved = list(tensors)
    for dtype in {tensor.dtype for tensor in tensors}:
        chosen = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        whole = to_device(torch.cat([tensors[i].flatten() for i in chosen]), device)
        for i, part in zip(chosen, whole.split([tensors[i].numel() for i in chosen]), strict=True):
            moved[i] = part.view(tensors[i].shape)
    return moved


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad rows (T_i, …) on the right with 0 to (B, max T, …); also return the mask (B, max T) of real entries."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


# --- batches ---------------------------------------------------------------------------------------------------------


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

    A batch has at most `budget` tokens; a longer query is a batch by itself.
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
