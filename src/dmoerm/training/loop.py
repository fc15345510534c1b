"""The training loop: fit the trainable parameters of a loss module.

    every step     collate a batch into parts that fit in memory; loss and backward pass of each part; average the
                   gradients over the processes, clip each expert's; AdamW, schedule
    every n steps  validate, keep the best state of each expert, write a checkpoint; stop when no expert improves

The seed determines the order of the rows, so a killed fit that is started again has the same result. The k experts of a
task train on the same batches. Each has its own labels, its own slice of every trained parameter and of the optimizer
state, and separate clipping, best state and patience. It becomes what it would become alone.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import get_linear_schedule_with_warmup

from ..config import StepConfig, TrainingConfig
from ..errors import CheckpointError, ConfigError, TrainingError
from ..io.paths import complete_folder
from ..model.layers import Decoder
from .losses import Collate, RowLosses, mean_by_expert
from .processes import (
    average,
    barrier,
    broadcast,
    copy_from_main,
    device,
    gather_rows,
    is_main,
    process_state,
    rank,
    reshard,
    sharded,
    total,
)

Watch = Callable[[int, int, Mapping[str, float]], Any]
"""Receives the number of finished steps, of all steps, and figures (which may be empty), after each step."""
_COLUMNS = ("rows", "weights", "correct", "certainty", "expert")  # of `RowLosses`
_SHARED = TrainingConfig()
_MAX_NORM = 1.0  # of the gradient of an expert
_MAIN = "process0.pt"  # in every complete checkpoint
_DISK_FULL = ("file write failed", "unexpected pos")  # messages of `torch.save`


@dataclass(frozen=True)
class FitResult:
    """The best validation loss and accuracy of an expert, and the number of optimizer steps."""

    loss: float
    accuracy: float
    steps: int


def fit(
    module: nn.Module,
    train: Sequence[Any],
    validation: Sequence[Any],
    *,
    collate: Collate,
    step: StepConfig,
    folder: Path,
    seed: int,
    training: TrainingConfig = _SHARED,
    report_to: Sequence[str] = (),
    watch: Watch = lambda *_: None,
) -> list[FitResult]:
    """Train the trainable parameters, restore each expert's best state, and return each expert's result.

    The start is a candidate too. If `metric_for_best_model` is `end`, the last state is kept.

    Args:
        module: maps a part of a batch to `RowLosses`.
        train, validation: rows; without validation rows, the training rows validate.
        collate: maps the rows of a batch to its parts on this process.
        folder: for checkpoints; if it has some, training resumes from the last one.
        seed: determines the order of the rows, and dropout.
        training: what all steps share.
        report_to: experiment trackers of accelerate.
        watch: see `Watch`.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: a checkpoint cannot be written.
    """
    # Processes share the batches of a step that trains layers of a decoder: `collate` returns this process's shard, and
    # each draws its own dropout. Otherwise each computes the whole batch, which takes less time than to communicate.
    decoders = (part for part in module.modules() if isinstance(part, Decoder))
    shared = any(p.requires_grad for decoder in decoders for p in decoder.parameters())
    run, _, name = folder.as_posix().rpartition("/checkpoints/")
    with ThreadPoolExecutor(1, "collate") as thread, tracked(report_to, Path(run or folder) / "logs", name) as log:
        loop = Loop(module, train, validation or train, collate, step, training, folder, seed, shared, thread)
        loop.run((watch, log))
    loop.best.restore_best()
    module.eval()
    best = zip(loop.best.best_loss.tolist(), loop.best.best_accuracy.tolist(), strict=True)
    return [FitResult(loss, accuracy, loop.done) for loss, accuracy in best]


def make_optimizer(best: BestTracker, step: StepConfig) -> torch.optim.Optimizer:
    """Return AdamW over the trained parameters; those of heads may have a learning rate of their own."""
    heads = [p for name, p in best.trained() if "head" in name.split(".")]
    others = [p for name, p in best.trained() if "head" not in name.split(".")]
    head_rate = getattr(step, "head_learning_rate", None) or step.learning_rate
    groups = [{"params": others, "lr": step.learning_rate}, {"params": heads, "lr": head_rate}]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=step.weight_decay, fused=True)


@contextlib.contextmanager
def tracked(names: Sequence[str], folder: Path, run_name: str) -> Iterator[Watch]:
    """Open experiment trackers for one fit and yield a function that logs figures.

    Args:
        folder: for trackers that write files; each fit has its own folder in it.
    """
    if not names:
        yield lambda done, total, figures: None
        return
    process_state()
    accelerator = Accelerator(log_with=list(names), project_dir=folder / run_name)
    accelerator.init_trackers("dmoerm", init_kwargs={"wandb": {"name": run_name}})
    try:
        yield lambda done, total, figures: accelerator.log(dict(figures), done) if figures else None
    finally:
        for tracker in accelerator.trackers:  # `end_training` would end the communication of the processes too
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for an experiment tracker that accelerate does not know or that is not installed."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"report_to: unknown tracker {name!r}; choose of {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            raise ConfigError(f"report_to: {name} is not installed; install its package or remove it from report_to")


class Loop:
    """A fit in progress. The arguments are those of `fit`.

    Attributes:
        size: rows of a batch, over all processes.
        steps: optimizer steps in an epoch.
        total: number of optimizer steps.
        every: steps between two validations.
        done: finished steps.
    """

    def __init__(
        self,
        module: nn.Module,
        train: Sequence[Any],
        validation: Sequence[Any],
        collate: Collate,
        step: StepConfig,
        training: TrainingConfig,
        folder: Path,
        seed: int,
        shared: bool,
        thread: ThreadPoolExecutor,
    ) -> None:
        self.module, self.rows, self.validation, self.collate = module.to(device()), train, validation, collate
        self.folder, self.seed, self.shared, self.thread = folder, seed, shared, thread
        self.size = training.batch_groups
        self.steps = -(-len(train) // self.size)
        self.total = max(round(self.steps * step.epochs), 1) if step.epochs else 0
        self.every = max(self.total // step.evaluations, 1)
        self.best = BestTracker(module, training.metric_for_best_model, step.patience)
        self.optimizer = make_optimizer(self.best, step)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, round(training.warmup * self.total), self.total)
        self.done = 0

    def run(self, watches: Sequence[Watch]) -> None:
        """Train from the last checkpoint, or from the start, until all steps are done or no expert has patience."""
        torch.manual_seed((self.seed + rank() * self.shared) % 2**32)
        if self.shared and not self.best.is_sharded:
            copy_from_main(p.data for _, p in self.best.trained())
        if not self._resume():
            figures = self._validate()
            for watch in watches:
                watch(0, self.total, figures)
        batches = self._collated(self.rows, self._order())
        logging, losses = max(self.every // 4, 1), list[Tensor]()
        while self.done < self.total and self.best.open:
            losses.append(self._step(batches))
            figures = {}
            if self.done % logging == 0:  # not at every step: the host waits for the device here
                figures["train loss"] = float(torch.stack(losses).mean())
                losses.clear()
            if self.done % self.every == 0 or self.done == self.total:
                figures |= self._validate()
                self._save()
            for watch in watches:
                watch(self.done, self.total, figures)

    def _step(self, batches: Iterator[list[Any]]) -> Tensor:
        """Take one optimizer step; return its loss."""
        self.module.train()
        loss = torch.zeros((), device=device())
        for part in next(batches):  # the parts' losses sum to the batch's
            part_loss = self.module(part).loss
            part_loss.backward()
            loss += part_loss.detach()
        self.best.collect_gradients(self.shared)
        self.best.clip()
        self.optimizer.step()
        self.schedule.step()
        self.module.zero_grad()
        self.done += 1
        return loss

    def _order(self) -> Iterator[list[int]]:
        """Yield the indices of the rows of each batch, from the next step on. Each epoch has its own order."""
        epoch, skip = divmod(self.done, self.steps)
        for number in itertools.count(epoch):
            order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.seed + number))
            yield from (rows.tolist() for rows in order.split(self.size)[skip:])
            skip = 0

    def _collated(self, rows: Sequence[Any], order: Iterable[Sequence[int]]) -> Iterator[list[Any]]:
        """Yield the parts of each batch on this process's device; see `prefetches`."""

        def parts(indices: Sequence[int]) -> list[Any]:
            return [part.to(device()) for part in self.collate([rows[i] for i in indices])]

        if not prefetches():
            yield from map(parts, order)
            return
        batches = (self.thread.submit(parts, indices) for indices in order)
        for current, _ in itertools.pairwise(itertools.chain(batches, [None])):  # the next one has been submitted
            yield current.result()  # pyright: ignore[reportOptionalMemberAccess]

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Record loss and accuracy of each expert over all validation rows; return their means over the experts."""
        self.module.eval()
        order = torch.arange(len(self.validation)).split(self.size)
        batches = self._collated(self.validation, (rows.tolist() for rows in order))
        losses: list[RowLosses] = [self.module(part) for parts in batches for part in parts]
        columns = tuple(torch.cat([getattr(part, name) for part in losses]) for name in _COLUMNS)
        columns = gather_rows(columns) if self.shared else columns  # padding has weight 0
        rows, weights, correct, certainty, expert = (column.cpu() for column in columns)
        loss = mean_by_expert(rows.double(), weights, expert, self.best.num_experts)
        accuracy = mean_by_expert(correct.double(), certainty, expert, self.best.num_experts)
        loss, accuracy = broadcast((loss, accuracy))  # all processes must make the same decision to stop
        if not loss[self.best.open].isfinite().all():  # else the fit would end well, with an earlier state as its best
            step = self.folder.as_posix().rpartition("checkpoints/")[2]
            raise TrainingError(f"{step}: the loss is not finite; lower the step's learning_rate")
        self.best.update(loss, accuracy)
        return {"loss": float(loss.mean()), "accuracy": float(accuracy.mean())}

    def _save(self) -> None:
        """Write a checkpoint and remove all but the last two.

        Every process writes its random state. The main process writes all else; with sharded weights, every process
        writes the state of its own rows.
        """
        gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        state: dict[str, Any] = {"random": [torch.get_rng_state(), *gpu]}
        if is_main() or self.best.is_sharded:
            parts = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
            state |= {"done": self.done, "trained": self.best.state(), **parts}
        folder = self.folder / f"checkpoint-{self.done}"
        try:
            with complete_folder(folder) if is_main() else contextlib.nullcontext() as target:
                torch.save(state, Path(broadcast(str(target))) / f"process{rank()}.pt")
                barrier()
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _DISK_FULL):
                raise
            reason = str(error).splitlines()[0]
            hint = "free some space and run again: training resumes from the last checkpoint"
            raise CheckpointError(f"{self.folder}: a checkpoint cannot be written: {reason}; {hint}") from error
        if is_main():
            for old in checkpoints(self.folder)[:-2]:
                shutil.rmtree(old)

    def _resume(self) -> bool:
        last = broadcast(next(reversed(checkpoints(self.folder)), None) if is_main() else None)
        if last is None:
            return False
        state: dict[str, Any] = {}
        for file in (_MAIN, f"process{rank()}.pt"):  # what differs from the main process replaces its values
            state |= torch.load(last / file, map_location="cpu", weights_only=True)
        self.best.load(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.done = state["done"]
        cpu, *gpu = state["random"]
        torch.set_rng_state(cpu)
        for generator in gpu:
            torch.cuda.set_rng_state(generator)
        return True


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, the last one at the end."""
    complete = [file.parent for file in folder.glob(f"checkpoint-*/{_MAIN}")]
    return sorted(complete, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]))


def prefetches() -> bool:
    """Return whether a thread prepares the next batch during a step.

    On a CPU, the thread would take processor time from the step. With sharded weights, an activation that is not cached
    is computed by a collective, which must not run during a pass, because that has collectives too.
    """
    return device().type != "cpu" and not sharded()


# --- the state of each expert -----------------------------------------------------------------------------------------


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
        better = {"loss": loss < self.best_loss, "accuracy": accuracy > self.best_accuracy}
        for expert in self.open:
            if self._metric != "end" and not better[self._metric][expert]:
                self.patience_count[expert] += 1
                continue
            self.best_loss[expert], self.best_accuracy[expert] = loss[expert], accuracy[expert]
            self.patience_count[expert] = 0
            index = expert if self._stacked else ...  # the expert's slice of a parameter
            for name, parameter in self.trained():
                self._best[name][index].copy_(parameter[index])

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
            norms = torch.linalg.vector_norm(gradient.reshape(rows, -1), dim=1, dtype=torch.float32)
            (part if name in self._rows else whole).add_(norms.square())
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
