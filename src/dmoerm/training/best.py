"""Keep the best state of each expert in training, and clip its gradient.

The k experts of a task train on the same batches. Each has its own labels, its own slice of every trained parameter and
of the optimizer state, and separate clipping, best state and patience. It becomes what it would become alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .processes import average, total
from .sharding import reshard

_MAX_NORM = 1.0  # of the gradient of an expert


class BestTracker:
    """The trained parameters of a loss module, with the best value, loss and accuracy of each expert.

    Args:
        module: maps a batch to `RowLosses`; its attribute `num_experts` is k if trained parameters are stacks of k.
        metric: decides which evaluation is best: `loss`, `accuracy`, or `end`, the last one.
        patience: evaluations without improvement after which an expert is done.
    """

    def __init__(self, module: nn.Module, metric: str = "loss", patience: int = 4) -> None:
        self.module, self._metric, self._patience = module, metric, patience
        self._stacked = getattr(module, "num_experts", None) is not None
        self.num_experts: int = getattr(module, "num_experts", None) or 1
        # This process's rows of each sharded parameter, as a parameter for the optimizer.
        self._rows = {
            name: nn.Parameter(p.to_local())
            for name, p in module.named_parameters()
            if p.requires_grad and isinstance(p, DTensor)
        }
        self._best = {name: p.detach().clone() for name, p in self.trained()}
        self.best_loss = torch.full((self.num_experts,), torch.inf, dtype=torch.float64)
        self.best_accuracy = torch.full((self.num_experts,), -torch.inf, dtype=torch.float64)
        self.patience_count = torch.zeros(self.num_experts, dtype=torch.long)

    @property
    def is_sharded(self) -> bool:
        """Whether each process has the state of its own rows of some parameters."""
        return bool(self._rows)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable parameters by name; for a sharded one, this process's rows, which share its memory."""
        if self.is_sharded:
            reshard(self.module)
        for name, p in self.module.named_parameters():
            if isinstance(p, DTensor) and p.requires_grad:
                self._rows[name].data = p.to_local().detach()  # FSDP2 moves them if it has to pad them
            if p.requires_grad:
                yield name, self._rows.get(name, p)

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
        if self._metric == "end":
            return True
        if self._metric == "loss":
            return loss < float(self.best_loss[expert])
        return accuracy > float(self.best_accuracy[expert])

    def _slice(self, tensor: Tensor, expert: int) -> Tensor:
        return tensor[expert] if self._stacked else tensor

    @property
    def open(self) -> list[int]:
        """Indices of the experts whose patience is not exhausted."""
        return [e for e in range(self.num_experts) if int(self.patience_count[e]) < self._patience]

    @torch.no_grad()
    def restore_best(self) -> None:
        """Set each expert to its best state."""
        for name, parameter in self.trained():
            parameter.copy_(self._best[name])

    @torch.no_grad()
    def collect_gradients(self, shared: bool) -> None:
        """Give the rows of sharded parameters their gradients; with `shared`, average the others over the processes.

        FSDP2 has averaged the gradients of sharded parameters in the backward pass.
        """
        sharded = dict(reshard(self.module).named_parameters()) if self.is_sharded else {}
        for name, p in self.trained():
            if name in self._rows:
                gradient: Any = sharded[name].grad
                p.grad = None if gradient is None else gradient.to_local()
        if shared:
            average(p.grad for name, p in self.trained() if name not in self._rows and p.grad is not None)

    @torch.no_grad()
    def clip(self) -> None:
        """Scale the gradient of each expert to a norm of at most 1."""
        rows = self.num_experts if self._stacked else 1
        gradients = {name: p.grad for name, p in self.trained() if p.grad is not None}
        if not gradients:
            return
        # Squared norms (k,): `part` covers this process's rows only, `whole` what every process has.
        whole, part = next(iter(gradients.values())).new_zeros(2, rows, dtype=torch.float32)
        for name, gradient in gradients.items():
            (part if name in self._rows else whole).add_(gradient.reshape(rows, -1).float().square().sum(1))
        norm = (whole + (total(part) if self.is_sharded else part)).sqrt()
        scale = (_MAX_NORM / (norm + 1e-6)).clamp(max=1)
        for g in gradients.values():
            g.mul_(scale.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1)) if self._stacked else scale.to(g.dtype))

    def state(self) -> dict[str, Tensor]:
        """Return the trained parameters, their best values, and the best metrics."""
        trained = {name: p.detach() for name, p in self.trained()}
        recorded = {name: getattr(self, name) for name in ("best_loss", "best_accuracy", "patience_count")}
        return trained | {f"best:{name}": tensor for name, tensor in self._best.items()} | recorded

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set everything that `state` returns, in place."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
