"""Preference examples that carry their features, for tests that need no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmoerm.chat.encoding import Encoded
from dmoerm.schema import Group, Pair
from dmoerm.training.batches import PreferenceExample


@dataclass(frozen=True)
class Made(PreferenceExample):
    features: Any = None


def features(example: Any) -> Any:
    """What a collator reads."""
    return example.features


def made(features: Any, pairs: Sequence[Pair] | Mapping[str | None, Sequence[Pair]], margin: float = 0.0) -> Made:
    """An example of these features: vectors (N, D), or the prompt's states and a list of each response's.

    Args:
        pairs: by capability, or the overall ones alone.
    """
    states = isinstance(features, tuple)
    lengths = [len(response) for response in features[1]] if states else [1] * len(features)
    encoded = Encoded([0] * (len(features[0]) if states else 1), [[0] * n for n in lengths])
    responses = tuple(f"r{i}" for i in range(len(lengths)))
    group = Group(prompt="Hi", responses=responses, scores=[*range(len(lengths))], margin=margin or None)
    return Made(group, encoded, None, pairs if isinstance(pairs, Mapping) else {None: pairs}, features)
