"""The aggregator of phase 3, which maps expert outputs to one reward (the inner layer of arXiv 2403.01197).

embeddings   r = FC2(PReLU(FC1(z_1 ⊕ … ⊕ z_k)))            the paper
scores       r = w · (r_1 … r_k, r_phase1, r_general, r_all)     linear, on normalized scores; r_all is optional
both         r = their sum
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import AggregatorConfig
from .heads import Normalizer


class Aggregator(nn.Module):
    """Maps vectors (N, m·D + s), m embeddings of width D followed by s scores, to rewards (N,).

    m is the number of experts, 1 if they share an embedding, or 0 if the inputs are scores alone. The s scores are
    the capability scores and the scores of `base_names`.

    Attributes:
        read_names: the `base_names` on which the reward depends.
    """

    def __init__(self, embeddings: int, width: int, capabilities: int, config: AggregatorConfig) -> None:
        super().__init__()
        self.base_names = base_names(config)
        self.read_names = config.base_scores if config.inputs != "embeddings" else ()
        width_read = embeddings * width if config.inputs != "scores" else 0
        self.split = (width_read, capabilities + len(self.base_names))
        read = [True] * capabilities + [name in config.base_scores for name in self.base_names]
        hidden = config.hidden or width
        self.mlp = _MLP(width_read, hidden, config.dropout) if config.inputs != "scores" else None
        self.linear = _Linear(read) if config.inputs != "embeddings" else None

    @torch.no_grad()
    def fit_normalizers(self, vectors: Tensor) -> None:
        """Fit the normalizers to the training part's vectors (n, m·D + s)."""
        z, scores = vectors.split(self.split, dim=-1)
        if self.mlp is not None:
            self.mlp.normalizer.fit(z)
        if self.linear is not None:
            self.linear.normalizer.fit(scores)

    def scores(self, vectors: Tensor) -> Tensor:
        """Return the scores (N, s) among the input vectors."""
        return vectors[:, self.split[0] :]

    def forward(self, vectors: Tensor) -> Tensor:
        z, scores = vectors.float().split(self.split, dim=-1)
        reward = self.linear(scores) if self.linear is not None else scores.new_zeros(len(scores))
        return reward + self.mlp(z) if self.mlp is not None else reward


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.normalizer = Normalizer(width)
        self.dropout = nn.Dropout(dropout)
        self.fc1, self.activation, self.fc2 = nn.Linear(width, hidden), nn.PReLU(), nn.Linear(hidden, 1, bias=False)
        nn.init.normal_(self.fc2.weight, std=1e-3)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(self.dropout(self.normalizer(z))))).squeeze(-1)


def base_names(config: AggregatorConfig) -> tuple[str, ...]:
    """Return the names of the scores after the capability scores, whether the linear map reads them or not."""
    return ("per_task", "general", *(("all_labels",) if "all_labels" in config.base_scores else ()))


class _Linear(nn.Module):
    """A linear map that starts as the mean of the normalized scores, a strong baseline with noisy labels."""

    read: Tensor

    def __init__(self, read: Sequence[bool]) -> None:
        super().__init__()
        self.normalizer = Normalizer(len(read))
        self.weight = nn.Parameter(torch.tensor(read) / max(sum(read), 1))
        self.register_buffer("read", torch.tensor(read, device="cpu"), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        return self.normalizer(scores) @ (self.weight * self.read)
