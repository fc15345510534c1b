"""How a reward follows from the router's probabilities: one task model, or a mixture of several.

    temperature 0    the most probable task alone; below the router's threshold, the general model
    temperature τ    q_t ∝ p_t^(1/τ);   reward = Σ_t (1 − g) q_t · r_t + g · r_general,   each r in log-odds of winning

Training chooses τ, the general model's weight g and the pooled tasks from out-of-fold rewards (training/routing).

Shapes: Q prompts, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

_SHARED_COVERAGE = 0.99
"""Probability that the mixed tasks cover where a task costs its heads only."""
_TRAINED_COVERAGE, _TRAINED_TASKS = 0.9, 3  # where a task has its own branch or LoRA, which cost passes of the branch
_SHARPEST = 1e-3  # a lower temperature is as sharp, and overflows
_ROUNDING = 1e-6


class Routing(BaseModel):
    """The outer layer's settings, which training chooses; part of config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    temperature: float = Field(default=0.0, ge=0, le=1e6)
    """τ; 0: the most probable task alone."""
    general_weight: float = Field(default=0.0, ge=0, le=1)
    """g, the general model's weight where tasks are mixed."""
    pooled: list[str] = Field(default=[], max_length=256)
    """Tasks in whose place the general model scores: with their own heads, held-out rewards are worse."""
    soft: bool = False
    """Whether the tasks' heads were fitted to all prompts, weighted by the tasks' probabilities."""

    def shares(self, probabilities: Tensor, tasks: Sequence[str], threshold: float, *, shared: bool) -> Tensor:
        """Return the weights (Q, T + 1) of the task models' rewards, and last of the general model's; rows sum to 1.

        Args:
            probabilities: (Q, T), the router's.
            tasks: T names.
            threshold: a most probable task below it has no weight; unused where tasks are mixed.
            shared: a task costs its heads only, so that any number of them may be mixed.
        """
        if self.temperature == 0:
            best, task = probabilities.max(1)
            kept = torch.zeros_like(probabilities)
            kept[torch.arange(len(kept)), task] = (best >= threshold).to(kept)
        else:
            powers = torch.softmax(probabilities.clamp(min=1e-30).log() / max(self.temperature, _SHARPEST), 1)
            kept = (1 - self.general_weight) * _largest(powers, shared=shared)
        pooled = [i for i, task in enumerate(tasks) if task in self.pooled]
        kept[:, pooled] = 0
        general = 1 - kept.sum(1, keepdim=True)
        return torch.cat([kept, torch.where(general < _ROUNDING, 0.0, general)], 1)


def _largest(shares: Tensor, *, shared: bool) -> Tensor:
    """Keep the fewest tasks of each row (Q, T) that cover enough of it; rows sum to 1."""
    coverage, most = (_SHARED_COVERAGE, shares.shape[1]) if shared else (_TRAINED_COVERAGE, _TRAINED_TASKS)
    ordered, index = shares.sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    ordered = ordered * ((before < coverage) & (torch.arange(shares.shape[1]) < most))
    return torch.zeros_like(shares).scatter(1, index, ordered / ordered.sum(1, keepdim=True))


class Known(NamedTuple):
    """What is known of a prompt's route before a pass.

    Attributes:
        task: the given task; None: none is given.
        probabilities: (T,), those that an earlier pass has computed from the prompt.
    """

    task: str | None
    probabilities: tuple[float, ...]


class Choice(NamedTuple):
    """What scores the responses to one prompt.

    Attributes:
        task: the task whose capabilities are reported; None: the general model scores alone.
        shares: task (None: the general model) → weight of its reward; positive, with sum 1.
        mixed: the reward is a mixture in the routed calibration, and not that of one model in its own.
    """

    task: str | None
    shares: Mapping[str | None, float]
    mixed: bool = False

    @property
    def only(self) -> str | None:
        """The task whose reward is that of the prompt's responses; None: the general model's is, or a mixture."""
        return None if self.mixed else next(iter(self.shares))

    @classmethod
    def of(cls, task: str | None) -> Choice:
        """Return the choice of one task's model, or of the general model for None."""
        return cls(task, {task: 1.0})
