"""The router, which gives the probabilities of a prompt's tasks: the outer layer of arXiv 2403.01197.

A prompt's embedding is the mean of its tokens' states and the last of them, from the trunk; or the mean alone, from the
router's own language model.

Shapes: Q prompts, P tokens of the longest prompt, T tasks, d width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .heads import Normalizer
from .layers import computing, whole_forward


class Router(nn.Module):
    """Maps prompt embeddings (Q, d) to task logits and probabilities (Q, T)."""

    def __init__(self, tasks: Sequence[str], width: int, language_model: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.language_model = language_model
        self.normalizer = Normalizer(width)
        self.classify = nn.Linear(width, len(self.tasks))
        nn.init.normal_(self.classify.weight, std=1e-3)

    @torch.no_grad()
    def with_tasks(self, tasks: Sequence[str]) -> Router:
        """Return a router of these tasks with the same embedding; known rows are kept, the others are 0."""
        router = Router(tasks, self.classify.in_features, self.language_model)
        router.normalizer = self.normalizer
        router.classify.to(self.classify.weight.device).requires_grad_(False)
        for name, parameter in router.classify.named_parameters():
            parameter.zero_()
            for i, task in enumerate(router.tasks):
                if task in self.tasks:
                    parameter[i] = self.classify.get_parameter(name)[self.tasks.index(task)]
        return router.train(self.training)

    def read(self, prompt: Tensor, mask: Tensor) -> Tensor:
        """Embed prompts with the router's own language model.

        Args:
            prompt: (Q, P), ids, right-padded.
            mask: (Q, P), True at real tokens.

        Returns:
            (Q, d), in float32.
        """
        assert self.language_model is not None
        with computing(self.language_model):
            states = whole_forward(self.language_model, prompt, mask)
        return (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits (Q, T) for prompt embeddings (Q, d)."""
        return self.classify(self.normalizer(embedding))

    def probabilities(self, embedding: Tensor) -> Tensor:
        """Return probabilities (Q, T) for prompt embeddings (Q, d); each row sums to 1."""
        return torch.softmax(self.forward(embedding), dim=-1)
