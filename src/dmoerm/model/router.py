"""The router: the probabilities of a prompt's tasks, and how a reward follows from them (the outer layer of the paper).

    embedding        the mean of the prompt's token states and the last of them, from the trunk; or the mean alone, from
                     the router's own language model
    temperature 0    the most probable task alone; below the router's threshold, the general model
    temperature τ    q_t ∝ p_t^(1/τ);   reward = Σ_t (1 − g) q_t · r_t + g · r_general,   each r in log-odds of winning

Training chooses τ, the general model's weight g and the pooled tasks from out-of-fold rewards (training/routing.py).

Shapes: Q prompts, P tokens of the longest prompt, T tasks, d width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from .heads import Normalizer
from .layers import computing, whole_forward

_SHARED_COVERAGE = 0.99  # the mixed tasks cover this probability where a task costs only its heads
_TRAINED_COVERAGE, _TRAINED_TASKS = 0.9, 3  # where a task has its own branch or LoRA, which cost passes of the branch
_SHARPEST = 1e-3  # a lower temperature is as sharp, and overflows
_ROUNDING = 1e-6


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
        """Return embeddings (Q, d), in float32, of right-padded ids (Q, P) by the router's own language model.

        Args:
            mask: (Q, P), True at real tokens.
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


class Routing(BaseModel):
    """The outer layer's settings, which training chooses; part of config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    temperature: float = Field(default=0.0, ge=0, le=1e6)
    """τ; 0: the most probable task alone."""
    general_weight: float = Field(default=0.0, ge=0, le=1)
    """g, the general model's weight where tasks are mixed."""
    pooled: list[str] = Field(default=[], max_length=256)
    """Tasks in whose place the general model scores: with their own heads, held-out rewards are worse."""
    soft: bool = False
    """Whether the tasks' heads were fitted to all prompts, weighted by the tasks' probabilities."""

    def shares(self, probabilities: Tensor, tasks: Sequence[str], threshold: float, *, shared: bool) -> Tensor:
        """Return the weights (Q, T + 1) of the task models' rewards, and last of the general model's; rows sum to 1.

        Args:
            probabilities: (Q, T), of the T `tasks`.
            threshold: a most probable task below it has no weight; unused where tasks are mixed.
            shared: a task costs only its heads, and any number of tasks may be mixed.
        """
        if self.temperature == 0:
            best, task = probabilities.max(1)
            kept = torch.zeros_like(probabilities)
            kept[torch.arange(len(kept)), task] = (best >= threshold).to(kept)
        else:
            powers = torch.softmax(probabilities.clamp(min=1e-30).log() / max(self.temperature, _SHARPEST), 1)
            # the fewest tasks of each row that cover enough of it
            coverage, most = (_SHARED_COVERAGE, len(tasks)) if shared else (_TRAINED_COVERAGE, _TRAINED_TASKS)
            ordered, index = powers.sort(1, descending=True)
            before = ordered.cumsum(1) - ordered
            ordered = ordered * ((before < coverage) & (torch.arange(len(tasks)) < most))
            largest = torch.zeros_like(powers).scatter(1, index, ordered / ordered.sum(1, keepdim=True))
            kept = (1 - self.general_weight) * largest
        kept[:, [i for i, task in enumerate(tasks) if task in self.pooled]] = 0
        general = 1 - kept.sum(1, keepdim=True)
        return torch.cat([kept, torch.where(general < _ROUNDING, 0.0, general)], 1)


class Known(NamedTuple):
    """What is known of a prompt's route before a pass."""

    task: str | None  # the given task, if any
    probabilities: tuple[float, ...]  # (T,), if an earlier pass has computed them from the prompt


class Choice(NamedTuple):
    """What scores the responses to one prompt."""

    task: str | None  # the task with the reported capabilities; None if the general model scores alone
    shares: Mapping[str | None, float]  # task (None: the general model) → weight of its reward; positive, with sum 1
    mixed: bool = False  # the reward is a mixture in the routed calibration; otherwise one model's, in its own

    @property
    def only(self) -> str | None:
        """The task that alone gives the reward; None for the general model or a mixture."""
        return None if self.mixed else next(iter(self.shares))

    @classmethod
    def of(cls, task: str | None) -> Choice:
        """Return the choice of one task's model, or of the general model for None."""
        return cls(task, {task: 1.0})
