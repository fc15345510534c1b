"""Preference examples that carry their features, for tests that need no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmoerm.chat.encoding import Encoded
from dmoerm.schema import Group, Pair, prompt_key
from dmoerm.training.examples import PreferenceExample


class Made(PreferenceExample):
    """An example in memory."""

    group: Any = None
    encoded: Any = None
    key: Any = property(lambda self: self.encoded.key)
    prompt: Any = property(lambda self: prompt_key(self.group.prompt))
    margin: Any = property(lambda self: self.group.margin or 0.0)

    def __init__(
        self,
        group: Group,
        encoded: Encoded,
        task: str | None = None,
        pairs: Mapping[str | None, Sequence[Pair]] | None = None,
        features: Any = None,
    ) -> None:
        self.group, self.encoded, self.task, self.features = group, encoded, task, features
        self._pairs = pairs or {}


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
