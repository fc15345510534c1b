"""What finished parts of the model say of the examples: embeddings and the aggregator's inputs, in batches.

Where an embedding costs a pass, each process computes some of the batches, and all get all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..model.batching import batches
from ..model.heads import BranchScorer
from ..model.layout import Packed, pack
from .batches import Example
from .processes import own, rejoined
from .steps import Run

_BATCH_TOKENS = 8192


@torch.no_grad()
def base_embeddings(run: Run, scorer: BranchScorer, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Key → (N, D), the embeddings under a branch: from the cache where the branch is the pretrained one."""
    if run.frozen:
        return {e.key: run.cache.embeddings(e.encoded) for e in examples}
    made = [_divide(batch, scorer.embed(states)) for batch, states in _state_batches(run, examples)]
    return _joined(made)


@torch.no_grad()
def task_vectors(run: Run, task: str, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Key → (N, m·D + k + 2), what the task's aggregator gets."""
    inner, general = run.model.inner(task), run.model.general
    if run.frozen and inner.experts.branch is None:
        found: dict[str, Tensor] = {}
        for e in examples:
            z = run.cache.embeddings(e.encoded).to(run.model.device)
            found[e.key] = inner.vectors(z, z.expand(len(inner.experts), *z.shape), general.head(z)).cpu()
        return found
    made = []
    for batch, states in _state_batches(run, examples):
        base = inner.base.embed(states)
        shared = base if run.frozen else general.embed(states)
        made.append(_divide(batch, inner.vectors(base, inner.experts.embed(states, base), general.head(shared))))
    return _joined(made)


def _state_batches(run: Run, examples: Sequence[Example]) -> Iterator[tuple[list[Example], Packed]]:
    examples = list({e.key: e for e in examples}.values())
    for rows in own(list(batches([e.encoded for e in examples], _BATCH_TOKENS))):
        batch = [examples[i] for i in rows]
        yield batch, pack([run.cache.states(e.encoded) for e in batch]).to(run.model.device)


def _joined(made: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: rows for part in rejoined(made) for key, rows in part.items()}


def _divide(batch: Sequence[Example], rows: Tensor) -> dict[str, Tensor]:
    parts = rows.cpu().split([len(e.encoded.responses) for e in batch])
    return {e.key: part for e, part in zip(batch, parts, strict=True)}
