"""All overrides of transformers' `Trainer`. `TESTED` names the versions that they are tested with.

batches      a list of typed parts, one backward pass each; every process gets the same batches in the same order;
             with an accelerator, the next batch is collated and copied in a thread while a step runs
loss         the module's, already a mean
evaluation   rows of all batches and processes, averaged by the function of the losses; a `BestTracker` records it
optimizer    AdamW; the gradient of each expert is clipped separately, heads can have another learning rate
checkpoints  keep the last two by step, not by time; complete only when every process has written its part
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalPrediction, rotate_checkpoints

from ..config import StepConfig
from ..errors import ConfigError, TrainingError
from .batches import Collate, PreferenceBatch
from .losses import RowLosses, mean_by_expert
from .processes import barrier, broadcast, gather_rows, rank, sharded
from .tracking import BestTracker

TESTED = ("5.20.0", "5.24.0")  # the lowest and the highest version of transformers


def check_transformers() -> None:
    """Raise `ConfigError` if transformers is older than the lowest version that these overrides are tested with."""
    if Version(transformers.__version__) < Version(TESTED[0]):
        raise ConfigError(
            f"training needs transformers {TESTED[0]} or newer (found {transformers.__version__}); "
            "older versions from 5.5 on load and score models"
        )


class StepTrainer(Trainer):
    """`Trainer` for a `BestTracker`.

    Args:
        train, validation: rows; `collate` makes batches of them.
        shared: `collate` returns this process's shard of a batch; otherwise every process computes the whole batch.
    """

    def __init__(
        self,
        tracker: BestTracker,
        train: Sequence[Any],
        validation: Sequence[Any],
        *,
        collate: Collate,
        step: StepConfig,
        args: TrainingArguments,
        shared: bool,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        super().__init__(
            model=tracker,
            args=args,
            train_dataset=_Rows(train),
            eval_dataset=_Rows(validation),
            data_collator=_Prefetch(collate, args.device) if _prefetches(args.device) else collate,  # pyright: ignore
            callbacks=[*callbacks, _RotateCheckpoints()],
            optimizers=(_optimizer(tracker, step), None),
            compute_metrics=self._measure,
        )
        self.remove_callback(PrinterCallback)
        self.tracker, self._shared = tracker, shared
        self.model_accepts_loss_kwargs = False  # else Trainer would not divide the loss, a mean, by accumulation

    def forget_preparation(self) -> None:
        """Let `train` prepare the model with DDP: an evaluation before it has prepared the model without."""
        self.tracker.__dict__.pop("_is_accelerate_prepared", None)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run one backward pass per part; the parts' losses sum to the batch's loss."""
        *parts, last = _parts(inputs)
        step: Any = functools.partial(super().training_step, model)
        with self.accelerator.no_sync(model):  # numbers of parts differ between processes: reduce gradients at the last
            losses = [step([part], *args, **kwargs) for part in parts]
        return torch.stack([*losses, step([last], *args, **kwargs)]).sum()

    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        (part,) = inputs
        return model(part).loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        with torch.no_grad():
            parts: list[RowLosses] = [model(part) for part in self._prepare_inputs(_parts(inputs))]
        names = ("rows", "weights", "correct", "certainty", "expert")
        columns = tuple(torch.cat([getattr(part, name) for part in parts]) for name in names)
        rows, *labels = gather_rows(columns) if self._shared else columns  # padding has weight 0
        return parts[0].loss, rows, tuple(labels)

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """Record loss and accuracy of each expert over all rows; return their means over the experts."""
        rows, weights, correct, certainty, expert = map(
            torch.as_tensor, (prediction.predictions, *prediction.label_ids)
        )
        count = self.tracker.num_experts
        loss = mean_by_expert(rows.double(), weights, expert, count)
        accuracy = mean_by_expert(correct.double(), certainty, expert, count)
        loss, accuracy = broadcast((loss, accuracy))  # all processes must make the same decision to stop
        # Raise here: otherwise the step would end normally with an earlier state as its best.
        if not loss[self.tracker.open].isfinite().all():
            step = str(self.args.output_dir).rpartition("checkpoints/")[2]
            raise TrainingError(f"{step}: the loss is not finite; lower the step's learning_rate")
        self.tracker.update(loss, accuracy)
        return {"loss": float(loss.mean()), "accuracy": float(accuracy.mean())}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.gather_function = lambda rows: (
            rows
        )  # gathered already; Trainer would cut the pairs to the number of groups
        metrics = super().evaluate(*args, **kwargs)
        self.control.should_training_stop |= not self.tracker.open
        return metrics

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """Return a loader of the same batches on every process; Trainer's default shards the batches itself."""
        sampler = sampler_fn(dataset) if sampler_fn else None
        loader = DataLoader(dataset, batch_size, sampler=sampler, collate_fn=self.data_collator)
        single = {"num_processes": 1, "process_index": 0, "put_on_device": True}
        seeded = {"use_seedable_sampler": True, "data_seed": self.args.data_seed}
        return prepare_data_loader(loader, self.accelerator.device, **single, **seeded)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.tracker.is_sharded and rank():  # Trainer writes those of the main process
            save_file(self.tracker.state_dict(), _of_rank(output_dir, "model.safetensors"))
            torch.save(self.optimizer.state_dict(), _of_rank(output_dir, "optimizer.pt"))  # pyright: ignore
        barrier()  # the main process writes `trainer_state.json` last, when all parts exist

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.tracker.is_sharded and rank():
            self.tracker.load_state_dict(load_file(_of_rank(resume_from_checkpoint, "model.safetensors")))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and self.tracker.is_sharded and rank():
            state = torch.load(_of_rank(checkpoint, "optimizer.pt"), map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


class _Prefetch:
    """Collate batches in a thread and copy them to the device; accelerate's loader reads one batch ahead."""

    def __init__(self, collate: Collate, device: torch.device) -> None:
        self._collate, self._device, self._thread = collate, device, ThreadPoolExecutor(1, "collate")

    def __call__(self, rows: Sequence[Any]) -> list[Future[list[PreferenceBatch]]]:
        return [self._thread.submit(lambda: [part.to(self._device) for part in self._collate(rows)])]


def _prefetches(device: torch.device) -> bool:
    """Return whether a thread prepares batches. On a CPU it would take processor time from the step; with sharded
    weights, reading an activation that is not cached is a collective, which the step's must not mix with."""
    return device.type != "cpu" and not sharded()


def _parts(inputs: Sequence[Any]) -> Any:
    """Return a batch's parts, from the thread if it prepares them. Raises what the collator raised."""
    return inputs[0].result() if isinstance(inputs[0], Future) else inputs


def _of_rank(checkpoint: str, name: str) -> Path:
    """Return the file of a process's rows of sharded weights."""
    return Path(checkpoint) / f"rank{rank()}_{name}"


def step_arguments(
    step: StepConfig, folder: Path, count: int, seed: int, shared: bool, report_to: Sequence[str]
) -> TrainingArguments:
    """Return Trainer's arguments for a step.

    Args:
        count: number of training rows.
        shared: see `StepTrainer`.
    """
    per_device = max(step.batch_groups // step.gradient_accumulation, 1)
    batches = -(-count // per_device)
    total = step.steps or max(round(-(-batches // step.gradient_accumulation) * step.epochs), 1)
    every = max(total // step.evaluations, 1)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=total,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        gradient_accumulation_steps=step.gradient_accumulation,
        warmup_steps=round(step.warmup * total),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        max_grad_norm=0,  # `BestTracker.clip` clips each expert separately
        logging_steps=max(every // 4, 1),
        logging_nan_inf_filter=False,  # the filter waits for the device at every step; `_measure` checks the loss
        seed=(seed + rank() * shared) % 2**32,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        ddp_broadcast_buffers=False,  # buffers are statistics that training does not change
        ddp_find_unused_parameters=False,  # every part of a batch uses all trained parameters
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to=list(report_to) or "none",
        run_name=folder.parent.name,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # with more, `Trainer` wraps the model in `DataParallel`
    return arguments


def _optimizer(tracker: BestTracker, step: StepConfig) -> torch.optim.Optimizer:
    heads = [p for name, p in tracker.trained() if "head" in name.split(".")]
    others = [p for name, p in tracker.trained() if "head" not in name.split(".")]
    head_rate = getattr(step, "head_learning_rate", None) or step.learning_rate
    groups = [{"params": others, "lr": step.learning_rate}, {"params": heads, "lr": head_rate}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=step.weight_decay)
    optimizer.register_step_pre_hook(lambda *_: tracker.clip())
    return optimizer


class _RotateCheckpoints(TrainerCallback):
    """Remove all checkpoints but the last two by step; Trainer sorts them by file time, and clocks may jump."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            rotate_checkpoints(str(args.output_dir), save_total_limit=2)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Trainer's warnings about the overrides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
