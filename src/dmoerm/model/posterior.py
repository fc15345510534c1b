"""The posterior of a reward's weights, which gives each reward a standard deviation.

A linear head's posterior is the Gaussian of the last-layer Laplace approximation (arXiv 2402.13210). For a reward that
is linear in the normalized embedding x, such as a sum of heads with independent posteriors:

    variance of the reward of x = Σ_i rest_i · x_i² − |x @ basis|²

`rest` is the variance of the weights without data; `basis` is what the labels removed from it. The basis has at most
`MAX_RANK` directions, those along which most is removed; without the others, a variance is only overestimated.

Shapes: D embedding width, R rank of the basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

MAX_RANK = 64


class HeadPosterior(NamedTuple):
    """The covariance of a linear head's weights, rest · I − basis · basisᵀ, in the units of the head's normalizer.

    Attributes:
        rest: ().
        basis: (D, R).
    """

    rest: Tensor
    basis: Tensor


class Posterior(nn.Module):
    """The covariance of a calibrated reward's weights on normalized embeddings (…, D). A new one is unknown.

    Attributes:
        rest: (D,), 0 if there is no posterior.
        basis: (D, R), R = min(64, D).
    """

    rest: Tensor
    basis: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("rest", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, min(MAX_RANK, width)))

    @property
    def known(self) -> bool:
        """Whether there is a posterior."""
        return bool(self.rest.any())

    @torch.no_grad()
    def set_sum(self, heads: Sequence[tuple[Tensor, HeadPosterior]]) -> None:
        """Set the posterior of a reward Σ_h (c_h · w_h) @ x from those of the heads' weights w_h, taken as independent.

        Args:
            heads: of each head, its coefficients c_h (D,) and its posterior.
        """
        self.rest.copy_(torch.stack([c.square() * head.rest for c, head in heads]).sum(0))
        columns = torch.cat([c[:, None] * head.basis for c, head in heads], 1)
        vectors, values, _ = torch.linalg.svd(columns.double(), full_matrices=False)
        kept = (vectors * values)[:, : self.basis.shape[1]]
        self.basis.zero_()
        self.basis[:, : kept.shape[1]] = kept.to(self.basis)

    def variance(self, x: Tensor) -> Tensor:
        """Return the variance (…) of the reward of x (…, D), an embedding or a difference of two embeddings."""
        x = x.float()
        return (x.square() @ self.rest - (x @ self.basis).square().sum(-1)).clamp(min=0)

    def deviation(self, x: Tensor) -> Tensor:
        """Return the standard deviation (…); see `variance`. It is nan without a posterior."""
        return self.variance(x).sqrt().masked_fill(~self.rest.any(), torch.nan)
