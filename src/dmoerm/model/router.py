"""The outer layer: which task a prompt belongs to, top-1 (arXiv 2403.01197, "outer layer")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .heads import Standardise


class Router(nn.Module):
    """Prompt → task probabilities. Reads the trunk's hidden states, or, given a language model of its own, the ids.

    Prompts are pooled by the mean over their tokens.
    """

    def __init__(self, tasks: Sequence[str], width: int, language_model: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.language_model = language_model
        self.standardise = Standardise(width)
        self.classify = nn.Linear(width, len(self.tasks))
        nn.init.normal_(self.classify.weight, std=1e-3)

    def embed(self, prompt: Tensor, mask: Tensor) -> Tensor:
        """Prompt embeddings (Q, d) of hidden states (Q, P, d), or of ids (Q, P) where the router has its own model."""
        if self.language_model is not None:
            prompt = self.language_model(input_ids=prompt, attention_mask=mask.long()).last_hidden_state
        return (prompt.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits (Q, T) of prompt embeddings (Q, d)."""
        return self.classify(self.standardise(embedding))

    def probabilities(self, prompt: Tensor, mask: Tensor) -> Tensor:
        """(Q, T), each row summing to 1."""
        return torch.softmax(self.forward(self.embed(prompt, mask)), dim=-1)
