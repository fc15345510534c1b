"""The preference loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def pair_losses(margins: Tensor, weights: Tensor, lane: Tensor, lanes: int, total: Tensor | None = None) -> Tensor:
    """Bradley–Terry, (k,): each lane's weighted mean of −log σ(r_better − r_worse), by `logsigmoid`: no overflow.

    Args:
        margins: (P,), r_better − r_worse of each ordered pair.
        weights: (P,), 1 / (number of the group's pairs in the lane): a long list counts no more than one pair.
        lane: (P,), whose pair it is, 0 … k − 1.
        total: (k,), what the weighted sums are divided by; None: the sums of `weights`.
    """
    losses = -functional.logsigmoid(margins.float()) * weights
    total = weights.new_zeros(lanes).index_add(0, lane, weights) if total is None else total
    return losses.new_zeros(lanes).index_add(0, lane, losses) / total.clamp(min=1e-12)
