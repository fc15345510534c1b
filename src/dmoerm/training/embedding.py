"""Outputs of trained parts of the model for the examples: embeddings and the inputs of the aggregator.

If an embedding needs a pass through a branch, the passes are sharded over the processes and the results gathered.

Shapes: N responses of an example, D embedding width, m embeddings, s scores; P and R tokens, d hidden width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..chat.encoding import Encoded
from ..model.heads import BranchScorer
from ..model.memory import scoring_tokens
from ..model.packing import Packed, batches, greedy, pack, to_device
from .examples import PreferenceExample
from .processes import gather_passes, shard_evenly, smallest
from .steps import Run

T = TypeVar("T")
_BYTES_PER_COPY = 64e6
_SAMPLE = 256  # groups for statistics if an embedding needs a pass
_IN_MEMORY = 1e9  # bytes; reading a batch from the cache takes a fraction of a large branch's step, but not of a head's


def sample(run: Run, examples: Sequence[PreferenceExample]) -> Sequence[PreferenceExample]:
    """Return all examples if embeddings are cached, else some at even distances: files are often sorted by task."""
    return examples if run.frozen else examples[:: -(-len(examples) // _SAMPLE) or 1]


class Cached(Mapping[str, T]):
    """Key → what a function reads from the cache for the example, read at every access."""

    def __init__(self, read: Callable[[Encoded], T], examples: Sequence[PreferenceExample]) -> None:
        self._read, self._examples = read, {e.key: e for e in examples}

    def __getitem__(self, key: str) -> T:
        return self._read(self._examples[key].encoded)

    def __iter__(self) -> Iterator[str]:
        return iter(self._examples)

    def __len__(self) -> int:
        return len(self._examples)

    def in_memory(self, size: Callable[[T], int]) -> Mapping[str, T]:
        """Read all of them now if they take up to `_IN_MEMORY` bytes, as the first of them suggest.

        Args:
            size: value → its bytes.
        """
        sizes = [size(value) for value in itertools.islice(self.values(), _SAMPLE)]
        return dict(self) if sum(sizes) * len(self) <= _IN_MEMORY * len(sizes) else self


@torch.no_grad()
def base_embeddings(run: Run, scorer: BranchScorer, examples: Sequence[PreferenceExample]) -> Mapping[str, Tensor]:
    """Return key → embeddings (N, D) under the scorer's branch; a frozen branch's are read from the cache."""
    if run.frozen:
        return Cached(run.cache.embeddings, examples).in_memory(lambda rows: rows.nbytes)
    return _run_passes(run, examples, scorer.embed)


def cached_states(run: Run, examples: Sequence[PreferenceExample]) -> Mapping[str, tuple[Tensor, list[Tensor]]]:
    """Return key → hidden states at the cut: the prompt's (P, d) and a list of each response's (R, d)."""
    return Cached(run.cache.states, examples).in_memory(
        lambda states: states[0].nbytes + sum(response.nbytes for response in states[1])
    )


@torch.no_grad()
def task_vectors(run: Run, task: str, examples: Sequence[PreferenceExample]) -> dict[str, Tensor]:
    """Return key → inputs of the task's aggregator (N, m·D + s)."""
    task_model, general = run.model.task_model(task), run.model.general
    if run.frozen and task_model.experts.branch is None:
        count = len(task_model.experts)
        embeddings = Cached(run.cache.embeddings, examples)
        return map_rows(lambda z: task_model.vectors(z, z.expand(count, *z.shape), general.head(z)), embeddings, run)

    def vectors(states: Packed) -> Tensor:
        base = task_model.base.embed(states)
        shared = base if run.frozen else general.embed(states)
        return task_model.vectors(base, task_model.experts.embed(states, base), general.head(shared))

    return _run_passes(run, examples, vectors, task_model.experts.runs)


@torch.no_grad()
def map_rows(compute: Callable[[Tensor], Tensor], rows: Mapping[str, Tensor], run: Run) -> dict[str, Tensor]:
    """Return key → `compute` of its rows, on the CPU.

    Args:
        compute: maps rows (M, …) on the model's device to outputs (M, …), row by row. It gets many keys' rows at a
            time, because each call takes a copy to the device and one back.
    """
    outputs: dict[str, Tensor] = {}
    for block in greedy(rows.items(), lambda row: row[1].nbytes, _BYTES_PER_COPY):
        keys, parts = zip(*block, strict=True)
        results = compute(to_device(torch.cat(parts), run.model.device)).cpu()
        outputs |= zip(keys, results.split([len(part) for part in parts]), strict=True)
    return outputs


def _run_passes(
    run: Run, examples: Sequence[PreferenceExample], compute: Callable[[Packed], Tensor], runs: int = 1
) -> dict[str, Tensor]:
    """Return key → the rows of `compute`, which maps a pass's hidden states to a row per response, in `runs` runs."""
    examples = list({e.key: e for e in examples}.values())
    branch: Any = run.model.general.branch
    budget = smallest(scoring_tokens(branch)) // runs
    passes = [[examples[i] for i in rows] for rows in batches([e.encoded for e in examples], budget)]
    inputs = (pack([run.cache.states(e.encoded) for e in batch]).to(run.model.device) for batch in shard_evenly(passes))
    outputs = gather_passes(map(compute, inputs), len(passes))
    vectors: dict[str, Tensor] = {}
    for batch, rows in zip(passes, outputs, strict=True):
        parts = rows.split([len(e.encoded.responses) for e in batch])
        vectors |= {e.key: part for e, part in zip(batch, parts, strict=True)}
    return vectors
