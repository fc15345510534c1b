"""The outer layer: which task a prompt belongs to, top-1 (arXiv 2403.01197, "outer layer").

A prompt's embedding is the mean over its tokens' states: the trunk's, or those of a language model of the router's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .heads import Normalizer
from .packed_attention import computing


class Router(nn.Module):
    """Prompt embeddings → tasks."""

    def __init__(self, tasks: Sequence[str], width: int, language_model: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.language_model = language_model
        self.normalizer = Normalizer(width)
        self.classify = nn.Linear(width, len(self.tasks))
        nn.init.normal_(self.classify.weight, std=1e-3)

    def read(self, prompt: Tensor, mask: Tensor) -> Tensor:
        """Prompt embeddings (Q, d) of ids (Q, P), right-padded, under the router's own language model."""
        assert self.language_model is not None
        with computing(self.language_model):
            states = self.language_model(input_ids=prompt, attention_mask=mask.long()).last_hidden_state
        return (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits (Q, T) of prompt embeddings (Q, d)."""
        return self.classify(self.normalizer(embedding))

    def probabilities(self, embedding: Tensor) -> Tensor:
        """(Q, T), each row summing to 1."""
        return torch.softmax(self.forward(embedding), dim=-1)
