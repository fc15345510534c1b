"""From states to one vector, and from a vector to one score.

states (N, R, d) ──pool──▶ embedding (N, D) ──Head──▶ score (N,)      D = d, or 2d for pooling `both`
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from .backbone import Shared, run_shared


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """The response's embedding (N, D), in float32: its last token, the mean over its tokens, or both side by side.

    The mask says which tokens are real: a pad token that equals the end token changes nothing.
    """
    states = states.float()
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    if how == "mean":
        return mean
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = states[torch.arange(len(states), device=mask.device), (positions * mask).argmax(1)]
    return last if how == "last" else torch.cat([last, mean], dim=-1)


def embedding_width(hidden_size: int, how: str) -> int:
    """D: the width of what `pool` returns."""
    return 2 * hidden_size if how == "both" else hidden_size


class Standardise(nn.Module):
    """(x − mean) / scale with statistics taken once from the training part and kept with the weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    @torch.no_grad()
    def fit(self, samples: Tensor) -> None:
        """Takes mean and standard deviation of the samples (n, width)."""
        self.mean.copy_(samples.mean(0))
        self.scale.copy_(samples.std(0, correction=0).clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale


class Head(nn.Module):
    """Embedding (…, D) → score (…). Linear, or with one hidden layer.

    The last layer starts near zero, so that a start's scores are close to equal and its loss close to log 2.
    """

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.standardise = Standardise(width)
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Sequential(nn.Linear(width, config.hidden), nn.PReLU()) if config.hidden else nn.Identity()
        self.score = nn.Linear(config.hidden or width, 1, bias=False)  # a bias cancels in every difference
        nn.init.normal_(self.score.weight, std=1e-3)

    def forward(self, embedding: Tensor) -> Tensor:
        x = self.dropout(self.standardise(embedding.float()))
        return self.score(self.hidden(x)).squeeze(-1)


class BranchScorer(nn.Module):
    """A branch and its head: the general model, a task's phase-1 model, or one expert in training."""

    def __init__(self, branch: nn.Module, head: Head, pooling: str) -> None:
        super().__init__()
        self.branch, self.head, self.pooling = branch, head, pooling

    def embed(self, inputs: Shared) -> Tensor:
        """The responses' embeddings (N, D)."""
        states = run_shared(self.branch, inputs)[1]  # pyright: ignore[reportArgumentType]
        return pool(states, inputs.response_mask, self.pooling)

    def forward(self, inputs: Shared) -> Tensor:
        return self.head(self.embed(inputs))
