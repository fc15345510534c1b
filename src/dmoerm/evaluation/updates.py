"""Whether an updated model orders pairs as people do more often than the model before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..model import DMoERM
from ..schema import Group, prompt_key
from .accuracy import compare, count_pairs
from .results import MEAN, Difference, Estimate

_BEFORE, _AFTER = "before", "dmoerm"  # `compare` subtracts from `dmoerm`
_Z95 = 1.96


class Gain(NamedTuple):
    """Accuracy before and after a change on the same prompts, and the paired difference, with 95 % intervals."""

    before: Estimate
    after: Estimate
    difference: Difference

    @property
    def is_loss(self) -> bool:
        """Whether the accuracy is lower than before, by more than a standard error of the difference."""
        error = (self.difference.high - self.difference.low) / (2 * _Z95)
        return self.difference.value < -error


ScoredGroups = Iterable[tuple[Group, Tensor, Tensor]]
"""Groups with their responses' rewards (N,) before and after a change."""


def gains(tasks: Mapping[str, ScoredGroups]) -> dict[str, Gain]:
    """Compare the rewards by task; tasks without ordered pairs are left out.

    Returns:
        task → gain, and an entry `mean` over all tasks; nothing if no task has an ordered pair.
    """
    counts = {
        task: count_pairs(
            (prompt_key(group.prompt), group.pairs(), {_BEFORE: before.numpy(), _AFTER: after.numpy()})
            for group, before, after in rows
        )
        for task, rows in tasks.items()
    }
    known = {task: each for task, each in counts.items() if each is not None}
    if not known:
        return {}
    accuracy, paired = compare(known)
    difference = paired[f"{_AFTER} - {_BEFORE}"]
    return {name: Gain(accuracy[_BEFORE][name], accuracy[_AFTER][name], difference[name]) for name in (*known, MEAN)}


def task_rewards(model: DMoERM, groups: Sequence[Group]) -> list[Tensor]:
    """Return the rewards (N,) of each group's responses under its own task, which the group names."""
    if not groups:
        return []
    scores = model.score([g.prompt for g in groups], [g.responses for g in groups], task=[g.task for g in groups])
    return [Tensor([score.reward for score in row]) for row in scores]


@contextlib.contextmanager
def with_weights(model: DMoERM, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model other weights while the block runs, those of a part of its `state_dict`."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in state}
    model.load_state_dict(state, strict=False)
    try:
        yield
    finally:
        model.load_state_dict(kept, strict=False)
