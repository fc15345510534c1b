"""A task's dense mixture: branch, experts, aggregator, and the calibration of the rewards.

base = pool(branch(x))                     r_phase1 = head(base)          r_all = all_labels(base)
z    = experts(x)                          r_i      = head_i(z_i)
r    = aggregator(z ⊕ (r_1 … r_k, r_phase1, r_general, r_all))
reward = (r − center) / scale              P(a better than b) = σ((reward_a − reward_b) / temperature)
uncertainty = posterior(base)              standard deviation of the reward

Shapes: N responses, k capabilities, D embedding width, m embeddings and s scores that the aggregator reads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .aggregator import Aggregator
from .experts import Experts
from .heads import BranchScorer, Head, Normalizer, Posterior
from .packing import Packed


class Calibration(nn.Module):
    """Maps raw rewards (N,) to rewards that compare across tasks, and whose differences give probabilities.

    Tasks are trained separately, so their raw rewards differ in level and unit. `center` and `scale`, from a task's own
    responses, remove both; `temperature` then makes σ(difference / temperature) the probability of a preference.
    """

    center: Tensor
    scale: Tensor
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("center", 0.0), ("scale", 1.0), ("temperature", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, reward: Tensor) -> Tensor:
        return (reward - self.center) / self.scale


class TaskOutput(NamedTuple):
    """A task model's scores of N responses.

    Attributes:
        reward: (N,), calibrated.
        capabilities: (N, k), each normalized over the training part's responses.
        uncertainty: (N,), the reward's standard deviation under the posterior of the heads; nan without a posterior.
        per_task: (N,), the phase-1 model's raw score.
    """

    reward: Tensor
    capabilities: Tensor
    uncertainty: Tensor
    per_task: Tensor


class TaskModel(nn.Module):
    """Branch, experts and aggregator of one task (the paper's inner layer).

    Args:
        all_labels: a head on the branch's embedding, fitted to overall and capability labels; with None, the
            aggregator reads no such score.
    """

    def __init__(
        self, base: BranchScorer, experts: Experts, aggregator: Aggregator, all_labels: Head | None = None
    ) -> None:
        super().__init__()
        self.base, self.experts, self.aggregator, self.all_labels = base, experts, aggregator, all_labels
        self.normalizer = Normalizer(len(experts))
        self.calibration = Calibration()
        self.posterior = Posterior(len(base.head.normalizer.mean))

    def vectors(self, base: Tensor, z: Tensor, general: Tensor) -> Tensor:
        """Return the aggregator's input (N, m·D + s).

        Args:
            base: (N, D), the plain branch's embeddings.
            z: (k, N, D), the experts' embeddings.
            general: (N,), the general model's scores.
        """
        scores = [self.experts.score(z), self.base.head(base)[:, None], general[:, None]]
        if self.all_labels is not None:
            scores.append(self.all_labels(base)[:, None])
        embeddings = () if self.aggregator.mlp is None else base[None] if self.experts.branch is None else z
        return torch.cat([*embeddings, *scores], dim=-1)

    @property
    def reads_base(self) -> bool:
        """Whether the reward depends on the plain branch or the general model; the paper's does not."""
        return self.aggregator.linear is not None or self.experts.branch is None

    @property
    def reads_general(self) -> bool:
        """Whether the reward depends on the general model's score."""
        return "general" in self.aggregator.read_names

    def forward(self, inputs: Packed, general: Tensor, base: Tensor | None = None) -> TaskOutput:
        """Score N responses.

        Args:
            general: (N,), the general model's scores; unused values if `reads_general` is false.
            base: (N, D), the plain branch's embeddings if they are known, as with a shared branch; saves a pass.
        """
        base = self.base.embed(inputs) if base is None else base
        return self.conclude(self.vectors(base, self.experts.embed(inputs, base), general), base)

    def forward_experts(self, inputs: Packed) -> TaskOutput:
        """Score N responses from the experts alone, if `reads_base` is false; `per_task` is not computed and is 0."""
        z = self.experts.embed(inputs, None)
        unread = z.new_zeros(z.shape[1], len(self.aggregator.base_names))
        return self.conclude(torch.cat([*z, self.experts.score(z), unread], -1))

    def conclude(self, vectors: Tensor, base: Tensor | None = None) -> TaskOutput:
        """Compute a task's scores from the aggregator's input (N, m·D + s).

        Args:
            base: (N, D), the plain branch's embeddings; without them the uncertainty is nan.
        """
        count = len(self.experts)
        scores = self.aggregator.scores(vectors)
        per_task = scores[:, count]
        unknown = torch.full_like(per_task, torch.nan)
        return TaskOutput(
            self.calibration(self.aggregator(vectors)),
            self.normalizer(scores[:, :count]),
            unknown if base is None else self.posterior.deviation(self.base.head.normalizer(base.float())),
            per_task,
        )
