"""Batches of ordered pairs from labeled groups.

    Group → PreferenceExample (encoded, with its ordered pairs) → PreferenceBatch (features and pairs of one pass)

A collator returns a list of batches: the parts of an optimizer step that this process computes, one pass each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..chat.encoding import Encoded
from ..model.memory import PASS_TOKENS
from ..model.packing import Packed, greedy, pack, to_device, transfer
from ..schema import Group, Pair, prompt_key
from .processes import shard, sharded, world_size

Collate = Callable[[Sequence[Any]], list[Any]]
Labels = Mapping[str | None, Sequence[Pair]]


@dataclass(frozen=True)
class PreferenceExample:
    """An encoded group with its ordered pairs.

    Attributes:
        task: the group's task, or the one that the router assigns; None: none.
        pairs: capability (None: overall) → ordered pairs.
    """

    group: Group
    encoded: Encoded
    task: str | None
    pairs: Labels = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The normalized text of the prompt; examples with equal texts have the same prompt."""
        return prompt_key(self.group.prompt)

    @property
    def key(self) -> str:
        """The hash of the token ids, which is the key in the activation cache."""
        return self.encoded.key

    @property
    def margin(self) -> float:
        """The minimum difference between the rewards of the two responses; 0 if the group has none."""
        return self.group.margin or 0.0

    def with_task(self, task: str | None) -> PreferenceExample:
        """Return the example with another task."""
        return replace(self, task=task)

    def with_pairs(self, pairs: Labels) -> PreferenceExample:
        """Return the example with other pairs."""
        return replace(self, pairs=pairs)


def label(group: Group) -> Labels:
    """Return the group's ordered pairs, overall (None) and by capability."""
    capabilities = {**group.capabilities, **group.judge_labels}
    return {None: group.pairs()} | {name: group.labeled_pairs(name) for name in capabilities}


def labeled(
    examples: Sequence[PreferenceExample], capabilities: Sequence[str | None] = (None,)
) -> list[PreferenceExample]:
    """Return the examples that order at least one pair on one of the capabilities (None: overall)."""
    return [example for example in examples if any(map(example.pairs.get, capabilities))]


@dataclass(frozen=True, eq=False)
class PreferenceBatch:
    """N responses and P ordered pairs of them, for one pass of k experts.

    Attributes:
        inputs: vectors (N, D), or packed hidden states or ids.
        better, worse: (P,), indices of the responses, 0 … N − 1.
        target: (P,), the probability that the better one is better: 1 for people's order, 0.5 for a tie.
        margin: (P,), the reward difference that the label requires.
        weight: (P,), the pair's weight / number of its group's pairs for the same expert; every group has weight 1.
        expert: (P,), index of the expert that the pair trains, 0 … k − 1.
        active: (a,), ascending indices of the experts that run on this part; None: all k.
        total: (k,), summed weights by expert of the whole batch, of which this is a part; None: this is all of it.
        share: 1 / number of parts; scales loss terms that do not depend on the data.
    """

    inputs: Tensor | Packed
    better: Tensor
    worse: Tensor
    target: Tensor
    margin: Tensor
    weight: Tensor
    expert: Tensor
    active: Tensor | None = None
    total: Tensor | None = None
    share: float = 1.0

    def to(self, device: Any) -> PreferenceBatch:
        """Return the batch on a device."""
        small = {name: value for name, value in vars(self).items() if isinstance(value, Tensor) and name != "inputs"}
        moved = dict(zip(small, transfer(list(small.values()), device), strict=True))
        inputs = self.inputs
        inputs = inputs.to(device) if isinstance(inputs, Packed) else to_device(inputs, device)
        return replace(self, inputs=inputs, **moved)

    def without_labels(self) -> PreferenceBatch:
        """Return a dummy that keeps the ranks in step: all pairs are ties of weight 0."""
        return replace(self, weight=torch.zeros_like(self.weight), target=torch.full_like(self.target, 0.5))


@dataclass(frozen=True)
class VectorCollator:
    """Collate examples whose features are vectors (N, D), one per response, into one batch.

    Args:
        features: example → features.
        capabilities: pairs of the i-th capability train the i-th expert; None: the overall preferences.
    """

    features: Callable[[PreferenceExample], Tensor]
    capabilities: Sequence[str | None] = (None,)

    def __call__(self, batch: Sequence[PreferenceExample]) -> list[PreferenceBatch]:
        vectors = torch.cat([self.features(example) for example in batch])
        pairs: dict[str, Any] = _pairs(batch, self.capabilities)
        return [PreferenceBatch(vectors, **pairs)]


@dataclass(frozen=True)
class PackedCollator:
    """Collate examples whose features are hidden states or ids into the parts that this process computes.

    The examples of a part have labels for the same experts, `active`, so no expert runs on a text that it has no label
    for. Each part has the summed weights of the whole batch divided by the world size. Gradients are averaged over
    the processes, so the parts' losses sum to the batch's loss, however many examples each process has.

    Args:
        features: example → the prompt's (P, d) and a list of each response's (R, d).
        capabilities: see `VectorCollator`.
        budget: maximum tokens of a part, where a token counts once for each active expert.
    """

    features: Callable[[PreferenceExample], tuple[Tensor, list[Tensor]]]
    capabilities: Sequence[str | None] = (None,)
    budget: int = PASS_TOKENS

    def __call__(self, batch: Sequence[PreferenceExample]) -> list[PreferenceBatch]:
        parts = [self._part(examples) for examples in self._divided(shard(batch))]
        count = max(len(parts), 1)
        if sharded():  # a pass is a collective: every process needs as many parts as the one with most
            count = max(len(self._divided(batch[r :: world_size()])) for r in range(world_size()))
        if len(parts) < count:
            dummy = self._part([min(batch, key=lambda example: example.encoded.tokens)]).without_labels()
            parts += [dummy] * (count - len(parts))
        pairs = _pairs(batch, self.capabilities)
        total = torch.zeros(len(self.capabilities)).index_add(0, pairs["expert"], pairs["weight"]) / world_size()
        return [replace(part, total=total, share=1 / len(parts)) for part in parts]

    def _part(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        inputs = pack([self.features(example) for example in examples])
        active = torch.tensor(self._active(examples[0]))
        pairs: dict[str, Any] = _pairs(examples, self.capabilities)
        return PreferenceBatch(inputs, **pairs, active=active)

    def _divided(self, batch: Sequence[PreferenceExample]) -> list[list[PreferenceExample]]:
        """Return the examples in parts with the same active experts, each within the budget."""
        by_experts: dict[tuple[int, ...], list[PreferenceExample]] = {}
        for example in batch:
            by_experts.setdefault(self._active(example), []).append(example)
        parts: list[list[PreferenceExample]] = []
        for active, some in by_experts.items():
            longest_first = sorted(some, key=lambda example: example.encoded.tokens, reverse=True)
            parts += greedy(longest_first, lambda example: example.encoded.tokens, self.budget // len(active))
        return parts

    def _active(self, example: PreferenceExample) -> tuple[int, ...]:
        pairs = example.pairs
        return tuple(i for i, name in enumerate(self.capabilities) if pairs.get(name)) or (0,)


def _pairs(batch: Sequence[PreferenceExample], capabilities: Sequence[str | None]) -> dict[str, Tensor]:
    rows: list[tuple[int, int, float, float, float, int]] = []
    offset = 0
    for example in batch:
        known = example.pairs
        labels = [(expert, pair) for expert, name in enumerate(capabilities) for pair in known.get(name, ())]
        count = Counter(expert for expert, _ in labels)
        for expert, pair in labels:
            margin = example.margin if capabilities[expert] is None else 0.0
            weight = pair.weight / count[expert]
            rows.append((offset + pair.better, offset + pair.worse, pair.probability, margin, weight, expert))
        offset += len(example.encoded.responses)
    better, worse, target, margin, weight, expert = zip(*rows, strict=True) if rows else ((),) * 6
    index, real = torch.long, torch.float32
    return {
        "better": torch.tensor(better, dtype=index),
        "worse": torch.tensor(worse, dtype=index),
        "target": torch.tensor(target, dtype=real),
        "margin": torch.tensor(margin, dtype=real),
        "weight": torch.tensor(weight, dtype=real),
        "expert": torch.tensor(expert, dtype=index),
    }
