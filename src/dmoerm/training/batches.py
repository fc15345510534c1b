"""From labelled groups to batches of ordered pairs.

An item is one group's features and its ordered pairs; a collated batch is a flat dict that a `PhaseModel` takes:
the features' tensors, and `better`, `worse`, `required` (margin), `weights`, one entry a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.splitting import flip_pairs
from ..model.encoding import Encoded
from ..model.layout import pack
from ..schema import Group, Pair, prompt_key

Batch = dict[str, Tensor]
Collate = Callable[[Sequence[Any]], Batch]


@dataclass(frozen=True)
class Example:
    """A group as training sees it: encoded, its pairs drawn up (and some reversed, where noise is asked for)."""

    group: Group
    encoded: Encoded
    task: str | None
    pairs: Mapping[str | None, Sequence[Pair]] = field(default_factory=dict)
    """Capability (None: overall) → ordered pairs."""

    @property
    def prompt(self) -> str:
        """What makes two prompts the same."""
        return prompt_key(self.group.prompt)

    @property
    def key(self) -> str:
        """Names the token ids, as in the activation cache."""
        return self.encoded.key


def label(group: Group, flip_scores: float = 0.0, flip_capabilities: float = 0.0, seed: int = 0) -> dict:
    """The group's ordered pairs, overall (None) and by capability, a share of them reversed."""
    pairs: dict[str | None, Sequence[Pair]] = {None: flip_pairs(group.pairs(), flip_scores, f"{seed}/{group.id}")}
    for capability in group.capabilities:
        seed_text = f"{seed}/{group.id}/{capability}"
        pairs[capability] = flip_pairs(group.pairs(capability), flip_capabilities, seed_text)
    return pairs


@dataclass(frozen=True)
class Item:
    """One group's features and ordered pairs."""

    features: Any
    pairs: Sequence[Pair]
    margin: float = 0.0


def items(examples: Sequence[Example], features: Callable[[Example], Any], capability: str | None = None) -> list[Item]:
    """The groups that order at least one pair on this capability (None: overall), with their features."""
    return [
        Item(features(example), pairs, (example.group.margin or 0.0) if capability is None else 0.0)
        for example in examples
        if (pairs := example.pairs.get(capability))
    ]


def collate_vectors(batch: Sequence[Item]) -> Batch:
    """Items whose features are vectors (N, D), one a response."""
    vectors = [item.features for item in batch]
    return {"vectors": torch.cat(vectors), **_pairs(batch, [len(v) for v in vectors])}


def collate_states(batch: Sequence[Item]) -> Batch:
    """Items whose features are hidden states (or ids): the prompt's (P, d) and a list of each response's (R, d)."""
    packed = pack([item.features for item in batch])
    lengths = {name: torch.tensor(getattr(packed.layout, name)) for name in ("prompts", "responses", "owner")}
    return {"tokens": packed.tokens, **lengths, **_pairs(batch, [len(item.features[1]) for item in batch])}


def _pairs(batch: Sequence[Item], counts: Sequence[int]) -> Batch:
    better, worse, required, weights, offset = [], [], [], [], 0
    for item, count in zip(batch, counts, strict=True):
        better += [offset + pair.better for pair in item.pairs]
        worse += [offset + pair.worse for pair in item.pairs]
        required += [item.margin] * len(item.pairs)
        weights += [1.0 / len(item.pairs)] * len(item.pairs)
        offset += count
    return {
        "better": torch.tensor(better),
        "worse": torch.tensor(worse),
        "required": torch.tensor(required),
        "weights": torch.tensor(weights),
    }
