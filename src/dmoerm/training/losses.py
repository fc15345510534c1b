"""The losses of training and validation: a module maps a batch to losses of rows, and `mean_by_expert` averages them.

    preference   a row is an ordered pair:   −p log σ(m) − (1 − p) log σ(−m),  m = r_better − r_worse − margin
    routing      a row is a prompt:          cross-entropy of the router's logits

A task's k experts are stacked, so one pass trains them all: every trained parameter has a first dimension of size k.
The loss is a sum over the experts, and no slice of a parameter occurs in the terms of two experts, so each slice gets
the gradient that it would get alone.

Shapes: k experts, a active experts, N responses, D embedding width, P pairs of a batch, Q prompts, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..model.experts import lora_layers
from ..model.heads import Head, embed
from ..model.layers import Decoder
from ..model.packing import Packed
from .batches import PreferenceBatch


@dataclass(frozen=True, eq=False)
class RowLosses:
    """The loss of a batch, or of a part of one, and its rows.

    Attributes:
        loss: the minimized value: the sum over the experts of their mean loss, plus the `l2` penalty.
        rows: (P,), the loss of each row.
        weights: (P,), each row's weight in the mean.
        correct: (P,), 1 where the pair is in the labeled order or the prompt's task is the likeliest one, else 0.
        certainty: (P,), each row's weight in the accuracy: 2 p − 1.
        expert: (P,), the expert that the row trains.
    """

    loss: Tensor
    rows: Tensor
    weights: Tensor
    correct: Tensor
    certainty: Tensor
    expert: Tensor


def preference_losses(margins: Tensor, target: Tensor) -> Tensor:
    """Return each pair's Bradley–Terry loss (P,), by `logsigmoid`: no overflow.

    Args:
        margins: (P,), r_better − r_worse − the margin that the label requires.
        target: (P,), p, the probability that the better one is better: 1 for people's order, 0.5 for a tie.
    """
    margins = margins.float()
    return (1 - target) * margins - functional.logsigmoid(margins)  # log σ(−m) = log σ(m) − m


def mean_by_expert(
    values: Tensor, weights: Tensor, expert: Tensor, num_experts: int, total: Tensor | None = None
) -> Tensor:
    """Return each expert's weighted mean (k,) of its rows' values.

    Args:
        values, weights, expert: (P,).
        total: (k,), what the weighted sums are divided by; None: the sums of `weights`.
    """
    sums = torch.zeros(num_experts, dtype=values.dtype, device=values.device)
    total = sums.index_add(0, expert, weights.to(values.dtype)) if total is None else total
    return sums.index_add(0, expert, values * weights) / total.clamp(min=1e-12)


class PreferenceLossModule(nn.Module):
    """The preference loss of a scorer, or of k stacked scorers.

    Args:
        scorer: maps vectors (N, D), or the packed hidden states of N responses, to rewards (N,), or (k, N).
        l2: strength of the penalty: l2 / 2 · squared distance of `penalized` from its start is added to the loss.
        penalized: the module whose trained parameters are penalized.
        num_experts: k if every trained parameter of the scorer is a stack of k; None: a single scorer.
    """

    def __init__(
        self, scorer: nn.Module, l2: float = 0.0, penalized: nn.Module | None = None, num_experts: int | None = None
    ) -> None:
        super().__init__()
        self.scorer, self.l2, self.num_experts = scorer, l2, num_experts
        self._penalized = [p for p in (penalized or nn.Module()).parameters() if p.requires_grad] if l2 else []
        self._start = [p.detach().clone() for p in self._penalized]

    def forward(self, batch: PreferenceBatch) -> RowLosses:
        expert, active = batch.expert, batch.active
        rewards = self.scorer(batch.inputs)[None] if self.num_experts is None else self.scorer(batch.inputs, active)
        row = expert if active is None else torch.searchsorted(active, expert)
        margins = rewards[row, batch.better] - rewards[row, batch.worse]
        rows = preference_losses(margins - batch.margin, batch.target)
        loss = mean_by_expert(rows, batch.weight, expert, self.num_experts or 1, batch.total).sum()
        correct = (margins > 0).to(rows.dtype)
        return RowLosses(loss + self._penalty(batch.share), rows, batch.weight, correct, 2 * batch.target - 1, expert)

    def _penalty(self, share: float) -> Tensor | float:
        """Return the share of the penalty in a part's loss: the parts' shares sum to the penalty."""
        starts = zip(self._penalized, self._start, strict=True)
        distances = [(parameter - start.to(parameter.device)).square().sum() for parameter, start in starts]
        return share * self.l2 / 2 * torch.stack(distances).sum() if distances else 0.0


class HeadStack(nn.Module):
    """k heads: embeddings (k, N, D) → scores (k, N).

    With `active` (a,), expert indices, only these heads run: embeddings (a, N, D) → scores (a, N).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([head.score.weight.detach() for head in heads]))
        self.register_buffer("mean", torch.stack([head.normalizer.mean for head in heads]))
        self.register_buffer("scale", torch.stack([head.normalizer.scale for head in heads]))

    def forward(self, embeddings: Tensor, active: Tensor | None = None) -> Tensor:
        index = slice(None) if active is None else active
        normalized = (embeddings.float() - self.mean[index, None]) / self.scale[index, None]
        return (normalized @ self.weight[index, :, None]).squeeze(-1)

    def states(self) -> list[dict[str, Tensor]]:
        """Return the state of each head, in the names of `Head`."""
        parts = {
            "normalizer.mean": self.mean,
            "normalizer.scale": self.scale,
            "score.weight": self.weight.detach()[:, None],
        }
        return [{name: part[i].clone() for name, part in parts.items()} for i in range(len(self.weight))]


class ExpertStack(nn.Module):
    """k experts: packed hidden states of N responses → scores (k, N); with `active` (a,), scores (a, N)."""

    def __init__(self, branch: Decoder, head: HeadStack, pooling: str) -> None:
        super().__init__()
        self.branch, self.head, self.pooling = branch, head, pooling

    def forward(self, inputs: Packed, active: Tensor | None = None) -> Tensor:
        for layer in lora_layers(self.branch).values():
            layer.active = active
        count = len(self.head.weight) if active is None else len(active)
        return self.head(embed(self.branch, inputs, self.pooling, count), active)
