"""What finished parts of the model say of the examples: embeddings and the aggregator's inputs, in batches.

Where an embedding costs a pass, each process makes some of the passes, and all get what all have made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..model.batching import batches
from ..model.heads import BranchScorer
from ..model.packing import Packed, pack
from .batches import PreferenceExample
from .processes import own_evenly, rejoined
from .steps import Run

_BATCH_TOKENS = 8192


@torch.no_grad()
def base_embeddings(run: Run, scorer: BranchScorer, examples: Sequence[PreferenceExample]) -> dict[str, Tensor]:
    """Key → (N, D), the embeddings under a branch: from the cache where the branch is the pretrained one."""
    if run.frozen:
        return {e.key: run.cache.embeddings(e.encoded) for e in examples}
    return _passed(run, examples, scorer.embed)


def cached_states(run: Run, examples: Sequence[PreferenceExample]) -> dict[str, tuple[Tensor, list[Tensor]]]:
    """Key → hidden states at the cut; every process reads all of them, since what is not cached takes a joint pass."""
    return {e.key: run.cache.states(e.encoded) for e in examples}


@torch.no_grad()
def task_vectors(run: Run, task: str, examples: Sequence[PreferenceExample]) -> dict[str, Tensor]:
    """Key → (N, m·D + k + 2), what the task's aggregator gets."""
    task_model, general = run.model.task_model(task), run.model.general
    if run.frozen and task_model.experts.branch is None:
        found: dict[str, Tensor] = {}
        for e in examples:
            z = run.cache.embeddings(e.encoded).to(run.model.device)
            found[e.key] = task_model.vectors(z, z.expand(len(task_model.experts), *z.shape), general.head(z)).cpu()
        return found

    def vectors(states: Packed) -> Tensor:
        base = task_model.base.embed(states)
        shared = base if run.frozen else general.embed(states)
        return task_model.vectors(base, task_model.experts.embed(states, base), general.head(shared))

    return _passed(run, examples, vectors)


def _passed(run: Run, examples: Sequence[PreferenceExample], make: Callable[[Packed], Tensor]) -> dict[str, Tensor]:
    """Key → the example's rows of what `make` gives for a pass's hidden states, a row a response."""
    examples = list({e.key: e for e in examples}.values())
    passes = [[examples[i] for i in rows] for rows in batches([e.encoded for e in examples], _BATCH_TOKENS)]
    inputs = (pack([run.cache.states(e.encoded) for e in batch]).to(run.model.device) for batch in own_evenly(passes))
    made = rejoined([make(states).cpu() for states in inputs])[: len(passes)]
    found: dict[str, Tensor] = {}
    for batch, rows in zip(passes, made, strict=True):
        parts = rows.split([len(e.encoded.responses) for e in batch])
        found |= {e.key: part for e, part in zip(batch, parts, strict=True)}
    return found
