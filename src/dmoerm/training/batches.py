"""From labelled groups to batches of ordered pairs.

An item is one group's features and its ordered pairs; a collated batch is a flat dict that a `PhaseModel` takes: the
features' tensors, and `better`, `worse`, `probability`, `required` (margin), `weights`, `lane`, one entry a pair; or
a list of such `parts`, of the groups that this process has of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..chat.encoding import Encoded
from ..data.splitting import flip_pairs
from ..model.packing import pack
from ..schema import Group, Pair, prompt_key
from .processes import own, sharded, world

Batch = dict[str, Any]
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
    """The group's pairs, overall (None) and by capability, a share of them reversed."""
    pairs: dict[str | None, Sequence[Pair]] = {None: flip_pairs(group.pairs(), flip_scores, f"{seed}/{group.id}")}
    for capability in {**group.capabilities, **group.judged}:
        seed_text = f"{seed}/{group.id}/{capability}"
        pairs[capability] = flip_pairs(group.labelled_pairs(capability), flip_capabilities, seed_text)
    return pairs


@dataclass(frozen=True)
class Item:
    """One group's features and ordered pairs."""

    features: Any
    pairs: Sequence[Pair]
    margin: float = 0.0
    lanes: Sequence[int] = ()
    """Whose label each pair is, where several scorers train together; empty: there is one."""


def items(
    examples: Sequence[Example],
    features: Callable[[Example], Any],
    capabilities: Sequence[str | None] = (None,),
    beside: Sequence[str] = (),
) -> list[Item]:
    """The groups that order at least one pair on one of the capabilities (None: overall), with their features.

    The i-th capability's pairs are the i-th lane's. Groups labelled on a capability of `beside` come too, without those
    pairs: so batches are the same whichever of the capabilities are trained.
    """
    found = []
    for example in examples:
        labels = [(pair, lane) for lane, name in enumerate(capabilities) for pair in example.pairs.get(name, ())]
        if labels or any(example.pairs.get(name) for name in beside):
            margin = (example.group.margin or 0.0) if None in capabilities else 0.0
            pairs, lanes = [pair for pair, _ in labels], [lane for _, lane in labels]
            found.append(Item(features(example), pairs, margin, lanes))
    return found


def collate_vectors(batch: Sequence[Item]) -> Batch:
    """Items whose features are vectors (N, D), one a response."""
    vectors = [item.features for item in batch]
    return {"vectors": torch.cat(vectors), **_pairs(batch, [len(v) for v in vectors])}


def collate_states(batch: Sequence[Item]) -> Batch:
    """Items whose features are hidden states (or ids): the prompt's (P, d) and a list of each response's (R, d)."""
    packed = pack([item.features for item in batch])
    lengths = {name: torch.tensor(getattr(packed.packing, name)) for name in ("prompts", "responses", "owner")}
    return {"tokens": packed.tokens, **lengths, **_pairs(batch, [len(item.features[1]) for item in batch])}


def collate_parts(lanes: int, budget: int = 8192) -> Collate:
    """As `collate_states`, in parts of at most `budget` tokens, each token counted once for each lane that labels it.

    The groups of a part are labelled by the same lanes, `active`: no other scorer runs on them. A part knows the whole
    batch's weights, so that the parts' losses add up to the batch's: over all processes, whose mean is taken, however
    many groups each of them has.
    """

    def collate(batch: Sequence[Item]) -> Batch:
        silent = _silent(min(batch, key=_tokens))
        parts = _parts(own(batch) or [silent], budget)
        if sharded():  # no process may go through the layers more often than another
            most = max(len(_parts(batch[other :: world()], budget)) for other in range(world()))
            parts += [[silent]] * (most - len(parts))
        made = [{**collate_states(part), "active": torch.tensor(_active(part[0]))} for part in parts]
        pairs = _pairs(batch, [len(item.features[1]) for item in batch])
        total = torch.zeros(lanes).index_add(0, pairs["lane"], pairs["weights"]) / world()
        return {"parts": [{**part, "total": total, "share": torch.tensor(1 / len(made))} for part in made]}

    return collate


def _silent(item: Item) -> Item:
    """The item without its labels: what a process computes that has no group of a batch, so that no other waits."""
    return replace(item, pairs=[pair._replace(probability=0.5, weight=0.0) for pair in item.pairs])


def _by_lanes(batch: Sequence[Item]) -> list[list[Item]]:
    found: dict[tuple[int, ...], list[Item]] = {}
    for item in batch:
        found.setdefault(_active(item), []).append(item)
    return list(found.values())


def _active(item: Item) -> tuple[int, ...]:
    return tuple(sorted(set(item.lanes or [0])))


def _parts(batch: Sequence[Item], budget: int) -> list[list[Item]]:
    return [part for items in _by_lanes(batch) for part in _cut(items, budget // len(_active(items[0])))]


def _cut(items: Sequence[Item], budget: int) -> list[list[Item]]:
    parts: list[list[Item]] = [[]]
    for item in sorted(items, key=_tokens, reverse=True):
        if parts[-1] and sum(map(_tokens, parts[-1])) + _tokens(item) > budget:
            parts.append([])
        parts[-1].append(item)
    return parts


def _tokens(item: Item) -> int:
    prompt, responses = item.features
    return len(prompt) + sum(map(len, responses))


def _pairs(batch: Sequence[Item], counts: Sequence[int]) -> Batch:
    better, worse, probability, required, weights, lane, offset = [], [], [], [], [], [], 0
    for item, count in zip(batch, counts, strict=True):
        lanes = item.lanes or [0] * len(item.pairs)
        share = Counter(lanes)
        better += [offset + pair.better for pair in item.pairs]
        worse += [offset + pair.worse for pair in item.pairs]
        probability += [pair.probability for pair in item.pairs]
        required += [item.margin] * len(item.pairs)
        weights += [pair.weight / share[i] for pair, i in zip(item.pairs, lanes, strict=True)]
        lane += lanes
        offset += count
    return {
        "better": torch.tensor(better, dtype=torch.long),  # there may be none
        "worse": torch.tensor(worse, dtype=torch.long),
        "probability": torch.tensor(probability),
        "required": torch.tensor(required),
        "weights": torch.tensor(weights),
        "lane": torch.tensor(lane, dtype=torch.long),
    }
