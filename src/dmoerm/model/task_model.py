"""One task's dense mixture: its branch, its experts, its aggregator, and the calibration of its rewards.

base = pool(branch(x))                     r_phase1 = head(base)
z    = experts(x)                          r_i      = head_i(z_i)
r    = aggregator(z ⊕ (r_1 … r_k, r_phase1, r_general))
reward = (r − centre) / scale              P(a better than b) = σ((reward_a − reward_b) / temperature)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .aggregator import Aggregator
from .experts import Experts
from .heads import BranchScorer, Normalizer
from .packing import Packed


class Calibration(nn.Module):
    """Makes rewards comparable between tasks, and their differences into probabilities."""

    centre: Tensor
    scale: Tensor
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("centre", 0.0), ("scale", 1.0), ("temperature", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, reward: Tensor) -> Tensor:
        return (reward - self.centre) / self.scale


class TaskOutput(NamedTuple):
    """A task model's scores of N responses.

    Attributes:
        reward: (N,), centred and scaled.
        capabilities: (N, k), each normalized over the training part's responses.
        uncertainty: (N,), the standard deviation of the capability scores: how far the experts disagree.
        per_task: (N,), the phase-1 model's own score, not calibrated.
    """

    reward: Tensor
    capabilities: Tensor
    uncertainty: Tensor
    per_task: Tensor


class TaskModel(nn.Module):
    """Branch, experts and aggregator of one task (the paper's inner layer)."""

    def __init__(self, base: BranchScorer, experts: Experts, aggregator: Aggregator) -> None:
        super().__init__()
        self.base, self.experts, self.aggregator = base, experts, aggregator
        self.normalizer = Normalizer(len(experts))
        self.calibration = Calibration()

    def vectors(self, base: Tensor, z: Tensor, general: Tensor) -> Tensor:
        """The aggregator's input (N, m·D + k + 2).

        Args:
            base: (N, D), the branch's embedding without experts.
            z: (k, N, D), the experts' embeddings.
            general: (N,), the general model's score.
        """
        scores = [self.experts.score(z), self.base.head(base)[:, None], general[:, None]]
        embeddings = base[None] if self.experts.branch is None else z
        return torch.cat([*embeddings, *scores], dim=-1)

    @property
    def reads_base(self) -> bool:
        """Whether the reward depends on the plain branch or the general model; the paper's does not."""
        return self.aggregator.linear is not None or self.experts.branch is None

    def forward(self, inputs: Packed, general: Tensor, base: Tensor | None = None) -> TaskOutput:
        """Scores N responses; `base` saves a pass where the branch is the general model's own."""
        base = self.base.embed(inputs) if base is None else base
        return self.conclude(self.vectors(base, self.experts.embed(inputs, base), general))

    def forward_experts(self, inputs: Packed) -> TaskOutput:
        """The same where the reward depends on the experts' embeddings alone; `per_task` is then not computed: 0."""
        z = self.experts.embed(inputs, None)
        unread = z.new_zeros(z.shape[1], 2)
        return self.conclude(torch.cat([*z, self.experts.score(z), unread], -1))

    def conclude(self, vectors: Tensor) -> TaskOutput:
        """From the aggregator's input to what is reported."""
        count = len(self.experts)
        scores = vectors[:, vectors.shape[1] - count - 2 :]
        capabilities = self.normalizer(scores[:, :count])
        return TaskOutput(
            self.calibration(self.aggregator(vectors)),
            capabilities,
            capabilities.std(-1, correction=0) if count else capabilities.new_zeros(len(capabilities)),
            scores[:, count],
        )
