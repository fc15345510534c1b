"""Track the best state of each expert in training.

The k experts of a task train on the same batches. Each has its own labels, its own slice of every trained parameter and
of the optimizer state, and separate clipping, best state and patience. It becomes what it would become alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, get_world_size
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import _IncompatibleKeys

from ..config import StepConfig
from .losses import RowLosses
from .sharded_branch import at_rest

_MAX_NORM = 1.0  # of the gradient of an expert


class BestTracker(nn.Module):
    """Wrap a loss module in training; its state (for checkpoints) is the trained parameters and their best values.

    Args:
        module: maps a batch to `RowLosses`; its attribute `num_experts` is k if trained parameters are stacks of k.
        step: the metric that decides which evaluation is best, and the patience.
    """

    best_loss: Tensor
    best_accuracy: Tensor
    patience_count: Tensor

    def __init__(self, module: nn.Module, step: StepConfig) -> None:
        super().__init__()
        self.module, self._step = module, step
        self._stacked = getattr(module, "num_experts", None) is not None
        self.num_experts: int = getattr(module, "num_experts", None) or 1
        self._rows = {
            name: nn.Parameter(p.to_local())
            for name, p in module.named_parameters()
            if p.requires_grad and isinstance(p, DTensor)
        }
        self._best = {name: p.detach().clone() for name, p in self.trained()}
        self.register_buffer("best_loss", torch.full((self.num_experts,), torch.inf, dtype=torch.float64))
        self.register_buffer("best_accuracy", torch.full((self.num_experts,), -torch.inf, dtype=torch.float64))
        self.register_buffer("patience_count", torch.zeros(self.num_experts, dtype=torch.long))

    def forward(self, batch: Any) -> RowLosses:
        # accelerate runs this in the launcher's mixed precision; the heads stay float32, as in scoring
        with torch.autocast(self.best_loss.device.type, enabled=False):
            return self.module(batch)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trained parameters: DDP must not see the others, which may be sharded."""
        return ((name, p) for name, p in super().named_parameters(*args, **kwargs) if p.requires_grad)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable parameters by name; of a sharded one this process's rows, which share its memory."""
        if self.is_sharded:
            at_rest(self.module)
        for name, p in self.module.named_parameters():
            if isinstance(p, DTensor) and p.requires_grad:
                self._rows[name].data = p.to_local().detach()  # FSDP2 moves them if it has to pad them
            if p.requires_grad:
                yield name, self._rows.get(name, p)

    @property
    def is_sharded(self) -> bool:
        """Whether each process has the state of its own rows of some parameters."""
        return bool(self._rows)

    @torch.no_grad()
    def update(self, loss: Tensor, accuracy: Tensor) -> None:
        """Record an evaluation, loss and accuracy of shape (k,); save the state of each expert that has improved."""
        for expert in self.open:
            if self._better(float(loss[expert]), float(accuracy[expert]), expert):
                self.best_loss[expert], self.best_accuracy[expert] = loss[expert], accuracy[expert]
                self.patience_count[expert] = 0
                for name, parameter in self.trained():
                    self._slice(self._best[name], expert).copy_(self._slice(parameter, expert))
            else:
                self.patience_count[expert] += 1

    def _better(self, loss: float, accuracy: float, expert: int) -> bool:
        if self._step.metric_for_best_model == "end":
            return True
        if self._step.metric_for_best_model == "loss":
            return loss < float(self.best_loss[expert])
        return accuracy > float(self.best_accuracy[expert])

    @property
    def open(self) -> list[int]:
        """Indices of the experts whose patience is not exhausted."""
        return [e for e in range(self.num_experts) if int(self.patience_count[e]) < self._step.patience]

    @torch.no_grad()
    def restore_best(self) -> None:
        """Set each expert to its best state."""
        for name, parameter in self.trained():
            parameter.copy_(self._best[name])

    @torch.no_grad()
    def clip(self) -> None:
        """Scale the gradient of each expert to a norm of at most 1."""
        if self.is_sharded:
            self._collect_gradients()
        gradients = [p.grad for _, p in self.trained() if p.grad is not None]
        if gradients:
            scale = (_MAX_NORM / (self._squares().sqrt() + 1e-6)).clamp(max=1)
            for g in gradients:
                g.mul_(scale.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1)) if self._stacked else scale.to(g.dtype))

    def _squares(self) -> Tensor:
        """Return the squared norm (k,) of each expert's gradient."""
        rows = self.num_experts if self._stacked else 1
        gradients = {name: p.grad.reshape(rows, -1).float() for name, p in self.trained() if p.grad is not None}
        whole, part = next(iter(gradients.values())).new_zeros(2, rows)
        for name, gradient in gradients.items():
            (part if name in self._rows else whole).add_(gradient.square().sum(1))
        if self.is_sharded:
            all_reduce(part)
        return whole + part

    def _collect_gradients(self) -> None:
        """Read the rows' gradients, which FSDP2 has averaged, and average those of the other parameters."""
        sharded = dict(at_rest(self.module).named_parameters())
        for name, p in self.trained():
            gradient: Any = sharded[name].grad
            if name in self._rows:
                p.grad = None if gradient is None else gradient.to_local()
            elif gradient is not None:
                all_reduce(gradient)
                gradient.div_(get_world_size())

    def _slice(self, tensor: Tensor, expert: int) -> Tensor:
        return tensor[expert] if self._stacked else tensor

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the trained parameters, their best values, and the best metrics."""
        trained = {name: p.detach() for name, p in self.trained()}
        recorded = {name: getattr(self, name) for name in ("best_loss", "best_accuracy", "patience_count")}
        return trained | {f"best:{name}": tensor for name, tensor in self._best.items()} | recorded

    @torch.no_grad()
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state_dict[name])
        return _IncompatibleKeys([], [])
