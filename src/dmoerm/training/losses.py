"""The preference loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def pair_losses(
    margins: Tensor, probability: Tensor, weights: Tensor, lane: Tensor, lanes: int, total: Tensor | None = None
) -> Tensor:
    """Bradley–Terry, (k,): each lane's weighted mean of −p log σ(m) − (1 − p) log σ(−m), by `logsigmoid`: no overflow.

    Args:
        margins: (P,), m = r_better − r_worse of each pair.
        probability: (P,), p, how sure it is that the better one is better: 1 for people's order, 0.5 for a tie.
        weights: (P,), the pair's own / (number of the group's pairs in the lane): a long list counts no more than one.
        lane: (P,), whose pair it is, 0 … k − 1.
        total: (k,), what the weighted sums are divided by; None: the sums of `weights`.
    """
    margins = margins.float()
    losses = ((1 - probability) * margins - functional.logsigmoid(margins)) * weights  # log σ(−m) = log σ(m) − m
    total = weights.new_zeros(lanes).index_add(0, lane, weights) if total is None else total
    return losses.new_zeros(lanes).index_add(0, lane, losses) / total.clamp(min=1e-12)
