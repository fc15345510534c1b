"""What one fit trains: a scorer under the preference loss, or k of them side by side, and the best that each has been.

A lane is one of the scorers that train together on the same batches: the experts of a task. Each has its own labels,
its own slice of every trained parameter (so of the optimiser's state), its own clipping, its own best checkpoint and
its own patience: what it becomes is what it would become alone.

Shapes: k lanes, N responses, P pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from ..config import StepConfig
from ..model.packing import Packed, Packing
from .losses import pair_losses

_MAX_NORM = 1.0  # of a lane's gradient


class PhaseModel(nn.Module):
    """A scorer under the preference loss.

    Args:
        scorer: maps vectors (N, D), or the packed hidden states of N responses, to rewards (N,), or (k, N).
        l2, pulled: the parameters pulled to where they start, and how strongly.
        lanes: k where the scorer is k scorers, every trained parameter of it a stack of k; None: it is one.
    """

    def __init__(
        self, scorer: nn.Module, l2: float = 0.0, pulled: nn.Module | None = None, lanes: int | None = None
    ) -> None:
        super().__init__()
        self.scorer, self.l2, self.lanes = scorer, l2, lanes
        self._pulled = [p for p in (pulled or nn.Module()).parameters() if p.requires_grad] if l2 else []
        self._start = [p.detach().clone() for p in self._pulled]

    def forward(
        self,
        better: Tensor,
        worse: Tensor,
        probability: Tensor,
        required: Tensor,
        weights: Tensor,
        lane: Tensor,
        total: Tensor | None = None,
        share: Tensor | None = None,
        active: Tensor | None = None,
        **features: Tensor,
    ) -> dict[str, Tensor]:
        """Loss (the lanes' sum), and margins, probabilities, weights and lanes of a batch, or of a part of one.

        Args:
            better, worse, probability, required, weights, lane: (P,), see `batches`.
            total: (k,), the weights of the whole batch by lane, of which this is a part; None: this is all of it.
            share: what part of the batch this is, for what does not depend on the data.
            active: (a,), the lanes that label this part, ascending; None: any may.
        """
        inputs = features["vectors"] if "vectors" in features else _packed(**features)
        rewards = self.scorer(inputs)[None] if self.lanes is None else self.scorer(inputs, active)
        row = lane if active is None else torch.searchsorted(active, lane)
        margins = rewards[row, better] - rewards[row, worse]
        loss = pair_losses(margins - required, probability, weights, lane, self.lanes or 1, total).sum()
        for parameter, start in zip(self._pulled, self._start, strict=True):
            pull = self.l2 / 2 * (parameter - start.to(parameter.device)).square().sum()
            loss = loss + (pull if share is None else pull * share)
        return {"loss": loss, "margins": margins, "probability": probability, "weights": weights, "lane": lane}


def _packed(tokens: Tensor, prompts: Tensor, responses: Tensor, owner: Tensor) -> Packed:
    return Packed(tokens, Packing(prompts.tolist(), responses.tolist(), owner.tolist(), tokens.device))


class Learner(nn.Module):
    """A model in training; its state, and so a checkpoint, is what is trained and the best that it has been.

    Args:
        model: returns `loss`, `margins`, `weights` (and `lane`) for a batch.
        step: which evaluations are better, and how many without gain end a lane.
    """

    best_loss: Tensor
    best_consistency: Tensor
    waited: Tensor

    def __init__(self, model: nn.Module, step: StepConfig) -> None:
        super().__init__()
        self.inner, self._step = model, step
        self._stacked = getattr(model, "lanes", None) is not None
        self.lanes: int = getattr(model, "lanes", None) or 1
        self._best = {name: p.detach().clone() for name, p in self.trained()}
        self.register_buffer("best_loss", torch.full((self.lanes,), torch.inf, dtype=torch.float64))
        self.register_buffer("best_consistency", torch.full((self.lanes,), -torch.inf, dtype=torch.float64))
        self.register_buffer("waited", torch.zeros(self.lanes, dtype=torch.long))

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        return self.inner(**batch)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that are trained: the others, the same on every process or in pieces, are not for DDP to look at."""
        return ((name, p) for name, p in super().named_parameters(*args, **kwargs) if p.requires_grad)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that want gradients, by name."""
        return ((name, p) for name, p in self.inner.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def consider(self, loss: Tensor, consistency: Tensor) -> None:
        """Takes note of an evaluation (k,), (k,): lanes that are better than ever are kept as they are now."""
        for lane in range(self.lanes):
            if self._ended(lane):
                continue
            if self._better(float(loss[lane]), float(consistency[lane]), lane):
                self.best_loss[lane], self.best_consistency[lane], self.waited[lane] = loss[lane], consistency[lane], 0
                for name, parameter in self.trained():
                    self._slice(self._best[name], lane).copy_(self._slice(parameter, lane))
            else:
                self.waited[lane] += 1

    def _better(self, loss: float, consistency: float, lane: int) -> bool:
        if self._step.metric_for_best_model == "end":
            return True
        if self._step.metric_for_best_model == "loss":
            return loss < float(self.best_loss[lane])
        return consistency > float(self.best_consistency[lane])

    def _ended(self, lane: int) -> bool:
        return int(self.waited[lane]) >= self._step.patience

    @property
    def open(self) -> list[int]:
        """The lanes that may still get better."""
        return [lane for lane in range(self.lanes) if not self._ended(lane)]

    @torch.no_grad()
    def take_best(self) -> None:
        """Puts the best of each lane in place."""
        for name, parameter in self.trained():
            parameter.copy_(self._best[name])

    @torch.no_grad()
    def clip(self) -> None:
        """Scales each lane's gradient to a norm of 1 at most."""
        gradients = [p.grad for _, p in self.trained() if p.grad is not None]
        if gradients:
            rows = self.lanes if self._stacked else 1
            norms = sum(g.reshape(rows, -1).float().square().sum(1) for g in gradients).sqrt()  # pyright: ignore
            scale = (_MAX_NORM / (norms + 1e-6)).clamp(max=1)
            for g in gradients:
                g.mul_(scale.to(g.dtype).reshape(rows, *[1] * (g.dim() - 1)) if self._stacked else scale.to(g.dtype))

    def _slice(self, tensor: Tensor, lane: int) -> Tensor:
        return tensor[lane] if self._stacked else tensor

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What is trained, the best of it, and the note of how good that was."""
        trained = {name: p.detach() for name, p in self.trained()}
        noted = {name: getattr(self, name) for name in ("best_loss", "best_consistency", "waited")}
        return trained | {f"best:{name}": tensor for name, tensor in self._best.items()} | noted

    @torch.no_grad()
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state_dict[name])
        return _IncompatibleKeys([], [])
