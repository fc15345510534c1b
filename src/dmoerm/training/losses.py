"""The preference loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def pair_loss(margins: Tensor, weights: Tensor) -> Tensor:
    """Bradley–Terry: the weighted mean of −log σ(r_better − r_worse), as `logsigmoid` so that it cannot overflow.

    Args:
        margins: (P,), r_better − r_worse of each ordered pair.
        weights: (P,), 1 / (number of pairs in the pair's group): a long list counts no more than one pair.
    """
    return -(functional.logsigmoid(margins.float()) * weights).sum() / weights.sum().clamp(min=1e-12)
