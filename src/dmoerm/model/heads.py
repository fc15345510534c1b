"""Heads: pooling of token states to embeddings, their scores, the scores' uncertainty, and the aggregator of phase 3.

    tokens ──branch──▶ states ──pool──▶ embedding (N, D) ──Head──▶ score (N,)      D = d, or 2d for pooling `both`

The aggregator maps expert outputs to one reward (the inner layer of arXiv 2403.01197):

    embeddings   r = FC2(PReLU(FC1(z_1 ⊕ … ⊕ z_k)))                  the paper
    scores       r = w · (r_1 … r_k, r_phase1, r_general, r_all)     linear, on normalized scores; r_all is optional
    both         r = their sum

The posterior of a linear head is the Gaussian of the last-layer Laplace approximation (arXiv 2402.13210). For a reward
that is linear in the normalized embedding x, such as a sum of heads with independent posteriors:

    variance of the reward of x = Σ_i rest_i · x_i² − |x @ basis|²

`rest` is the variance of the weights without data; `basis` is what the labels removed from it. The basis has at most
`MAX_RANK` directions, along which most is removed; without the others, a variance is only overestimated.

Shapes: k experts, N responses, d hidden width, D embedding width, R rank of the basis, m embeddings and s scores that
an aggregator reads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import AggregatorConfig
from .layers import Decoder, run
from .packing import Packed, means, to_device

MAX_RANK = 64
MAX_PLAYERS = 10
"""The most embeddings of an aggregator whose contributions are computed: 2^10 passes of two small layers each."""
_GAME_ELEMENTS = 2**22  # hidden units of all coalitions and responses that are in memory at once


def embed(branch: Decoder, inputs: Packed, pooling: str, num_experts: int = 1) -> Tensor:
    """Return the responses' embeddings (k, N, D) under a branch, in float32.

    Args:
        pooling: `last` (a response's last token), `mean` (over its tokens), or `both` side by side.
        num_experts: k, the number of experts in the branch's linear layers.
    """
    packing = inputs.packing
    if pooling == "last":
        return run(branch, inputs, "last", num_experts).float()
    states = run(branch, inputs, "responses", num_experts)
    mean = means(states, packing.of_response, packing.response_lengths)
    if pooling == "mean":
        return mean
    return torch.cat([states[:, packing.last - packing.prompt_tokens].float(), mean], -1)


class Normalizer(nn.Module):
    """(x − mean) / scale, with statistics of the training part that are saved with the weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    @torch.no_grad()
    def fit(self, samples: Tensor) -> None:
        """Set mean and scale to the mean and standard deviation of samples (n, width)."""
        self.mean.copy_(samples.mean(0))
        self.scale.copy_(samples.std(0, correction=0).clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale


class Head(nn.Module):
    """Maps embeddings (…, D) to scores (…), linearly.

    The weights start near zero, so initial scores are almost equal and the initial loss is close to log 2.
    """

    has_start = False  # the weights come from a reward model; see `start_from`

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalizer = Normalizer(width)
        self.score = nn.Linear(width, 1, bias=False)  # a bias cancels in every difference
        nn.init.normal_(self.score.weight, std=1e-3)

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        """Score like a reward model with head `weight` (1, d) on the last state, the first d of an embedding."""
        self.score.weight.zero_()
        self.score.weight[:, : weight.shape[1]] = weight
        self.has_start = True

    @torch.no_grad()
    def fit_normalizer(self, samples: Tensor) -> None:
        """Fit the normalizer to embeddings (n, D). A start's scores change by a constant only."""
        before = self.normalizer.scale.clone()
        self.normalizer.fit(samples)
        if self.has_start:
            self.score.weight *= self.normalizer.scale / before

    def forward(self, embedding: Tensor) -> Tensor:
        return self.score(self.normalizer(embedding.float())).squeeze(-1)


class BranchScorer(nn.Module):
    """A branch and its head: the general model, a task's phase-1 model, or an expert in training."""

    def __init__(self, branch: nn.Module, head: Head, pooling: str) -> None:
        super().__init__()
        self.branch, self.head, self.pooling = branch, head, pooling

    def embed(self, inputs: Packed) -> Tensor:
        """Return the responses' embeddings (N, D)."""
        return embed(self.branch, inputs, self.pooling)[0]  # pyright: ignore[reportArgumentType]

    def forward(self, inputs: Packed) -> Tensor:
        return self.head(self.embed(inputs))


class HeadPosterior(NamedTuple):
    """The covariance of a linear head's weights, rest · I − basis · basisᵀ, in the units of the head's normalizer."""

    rest: Tensor  # ()
    basis: Tensor  # (D, R)


class Posterior(nn.Module):
    """The covariance of a calibrated reward's weights on normalized embeddings (…, D). A new one is unknown."""

    rest: Tensor  # (D,), 0 if there is no posterior
    basis: Tensor  # (D, R), R = min(64, D), or fewer in a checkpoint that was made smaller

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("rest", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, min(MAX_RANK, width)))

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        basis = state_dict.get(f"{prefix}basis")
        if basis is not None and basis.ndim == 2 and 0 < basis.shape[1] < self.basis.shape[1]:
            self.basis = self.basis[:, : basis.shape[1]]
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def known(self) -> bool:
        """Whether there is a posterior."""
        return bool(self.rest.any())

    @torch.no_grad()
    def set_sum(self, heads: Sequence[tuple[Tensor, HeadPosterior]]) -> None:
        """Set the posterior of a reward Σ_h (c_h · w_h) @ x, with independent heads' weights w_h.

        Each head has its coefficients c_h (D,) and its posterior.
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


class Aggregator(nn.Module):
    """Maps vectors (N, m·D + s), m embeddings of width D followed by s scores, to rewards (N,).

    m is the number of experts, 1 if they share an embedding, or 0 if the inputs are scores alone.

    Attributes:
        base_names: the scores after the capability scores, whether the linear map reads them or not.
        read_names: the `base_names` on which the reward depends.
    """

    def __init__(self, embeddings: int, width: int, capabilities: int, config: AggregatorConfig) -> None:
        super().__init__()
        self.base_names = ("per_task", "general", *(["all_labels"] if "all_labels" in config.base_scores else []))
        self.read_names = config.base_scores if config.inputs != "embeddings" else ()
        width_read = embeddings * width if config.inputs != "scores" else 0
        self.split = (width_read, capabilities + len(self.base_names))
        self.embeddings = width_read // width
        read = [True] * capabilities + [name in config.base_scores for name in self.base_names]
        self.mlp = _MLP(width_read, config.hidden or width, config.dropout) if config.inputs != "scores" else None
        self.linear = _Linear(read) if config.inputs != "embeddings" else None

    @torch.no_grad()
    def fit_normalizers(self, vectors: Tensor) -> None:
        """Fit the normalizers to the training part's vectors (n, m·D + s)."""
        for part, columns in zip((self.mlp, self.linear), vectors.split(self.split, dim=-1), strict=True):
            if part is not None:
                part.normalizer.fit(columns)

    def scores(self, vectors: Tensor) -> Tensor:
        """Return the scores (N, s) among the input vectors."""
        return vectors[:, self.split[0] :]

    @torch.no_grad()
    def contributions(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much the scores (N, s) and the embeddings (N, m) contribute to the rewards, up to a constant.

        The embeddings' contributions are nan if there are more than `MAX_PLAYERS`. See contributions.py.
        """
        z, scores = vectors.float().split(self.split, dim=-1)
        by_score = torch.zeros_like(scores) if self.linear is None else self.linear.terms(scores)
        by_embedding = scores.new_zeros(len(scores), 0) if self.mlp is None else self.mlp.shapley(z, self.embeddings)
        return by_score, by_embedding

    def forward(self, vectors: Tensor) -> Tensor:
        z, scores = vectors.float().split(self.split, dim=-1)
        reward = self.linear(scores) if self.linear is not None else scores.new_zeros(len(scores))
        return reward + self.mlp(z) if self.mlp is not None else reward


@functools.cache
def game(players: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the members (2^m, m) of all coalitions of m players, as 0 and 1, and the weights (2^m, m) of their values.

    The Shapley values (arXiv 1705.07874) of a game are the values (2^m,) of its coalitions @ weights:

        φ_i = Σ over S without i of |S|! (m − |S| − 1)! / m! · (v(S ∪ i) − v(S))
    """
    members = (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1
    shares = torch.tensor([1 / (players * math.comb(players - 1, size)) for size in range(players)])
    size = members.sum(1, keepdim=True)
    inside, outside = shares[(size - 1).clamp(min=0)], shares[size.clamp(max=players - 1)]
    return to_device(members.float(), device), to_device(torch.where(members == 1, inside, -outside), device)


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.normalizer = Normalizer(width)
        self.dropout = nn.Dropout(dropout)
        self.fc1, self.activation, self.fc2 = nn.Linear(width, hidden), nn.PReLU(), nn.Linear(hidden, 1, bias=False)
        nn.init.normal_(self.fc2.weight, std=1e-3)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(self.dropout(self.normalizer(z))))).squeeze(-1)

    def shapley(self, z: Tensor, embeddings: int) -> Tensor:
        """Return the Shapley values (N, m) of the m embeddings; one that is left out is the training part's mean."""
        if embeddings > MAX_PLAYERS:
            return z.new_full((len(z), embeddings), torch.nan)
        inputs = self.normalizer(z).unflatten(1, (embeddings, -1)).transpose(0, 1)  # (m, N, D)
        weight = self.fc1.weight.unflatten(1, (embeddings, -1)).permute(1, 2, 0)  # (m, D, H)
        # of the hidden units; 0 for the mean. Copies: bits depend on the layout in memory, which loading changes
        terms = torch.bmm(inputs.contiguous(), weight.contiguous()).transpose(0, 1)
        members, weights = game(embeddings, z.device)
        rows = max(1, _GAME_ELEMENTS // (len(members) * self.fc1.out_features))
        hidden = (torch.einsum("cm,nmh->nch", members, part) + self.fc1.bias for part in terms.split(rows))
        return torch.cat([(self.activation(part) * self.fc2.weight).sum(-1) @ weights for part in hidden])


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

    def terms(self, scores: Tensor) -> Tensor:
        """Return the terms (N, s) whose sums are the rewards."""
        return self.normalizer(scores) * (self.weight * self.read)
