"""All that is changed in transformers' `Trainer`, in one place; `TESTED` names the versions it is tested with.

batches     a list of typed parts, one backward pass each; every process gets whole batches, in the same order
loss        the module's own, a mean already
evaluation  rows of all batches and processes, averaged by the losses' own function; a `BestTracker` notes them
optimizer   AdamW, each expert's gradient clipped by itself, heads at a rate of their own
checkpoints the last two by number, not by time; complete only when every process has written its part
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalPrediction, rotate_checkpoints

from ..config import StepConfig
from ..errors import TrainingError
from .batches import Collate
from .losses import RowLosses, mean_by_expert
from .processes import agreed, barrier, gathered_rows, rank
from .tracking import BestTracker

TESTED = "transformers 5.20.2 and 5.24.0"


class StepTrainer(Trainer):
    """`Trainer` for a `BestTracker`.

    Args:
        train, validation: the rows that `collate` makes batches of.
        shared: `collate` gives each process its rows of a batch; else each computes the whole batch.
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
            data_collator=collate,  # pyright: ignore[reportArgumentType]
            callbacks=[*callbacks, _KeepTheLast()],
            optimizers=(_optimizer(tracker, step), None),
            compute_metrics=self._measure,
        )
        self.remove_callback(PrinterCallback)
        self.tracker, self._shared = tracker, shared
        self.model_accepts_loss_kwargs = False  # the loss is a mean already: accumulation divides it

    def forget_preparation(self) -> None:
        """Let `train` prepare the model again: an evaluation prepares it without DDP."""
        self.tracker.__dict__.pop("_is_accelerate_prepared", None)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run one backward pass a part; the parts' losses add up to the batch's."""
        *parts, last = inputs
        step = functools.partial(super().training_step, model)
        with self.accelerator.no_sync(model):  # others may have more parts or fewer: gradients meet at the last one
            losses = [step([part], *args, **kwargs) for part in parts]
        return torch.stack([*losses, step([last], *args, **kwargs)]).sum()

    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        (part,) = inputs
        return model(part).loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        with torch.no_grad():
            parts: list[RowLosses] = [model(part) for part in self._prepare_inputs(inputs)]
        names = ("rows", "weights", "correct", "certainty", "expert")
        found = tuple(torch.cat([getattr(part, name) for part in parts]) for name in names)
        rows, *labels = gathered_rows(found) if self._shared else found  # zeros are rows of weight 0
        return parts[0].loss, rows, tuple(labels)

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the means over the experts of the loss and the accuracy, each over all rows at once."""
        rows, weights, correct, certainty, expert = map(
            torch.as_tensor, (prediction.predictions, *prediction.label_ids)
        )
        count = self.tracker.num_experts
        loss = mean_by_expert(rows.double(), weights, expert, count)
        accuracy = mean_by_expert(correct.double(), certainty, expert, count)
        loss, accuracy = agreed((loss, accuracy))  # whether to stop is decided once
        # At once: else the step would end with an earlier state as its best.
        if not loss[self.tracker.open].isfinite().all():
            step = str(self.args.output_dir).rpartition("checkpoints/")[2]
            raise TrainingError(f"{step}: the loss is not finite; lower the step's learning_rate")
        self.tracker.update(loss, accuracy)
        return {"loss": float(loss.mean()), "accuracy": float(accuracy.mean())}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.gather_function = lambda rows: rows  # they are all here; the default cuts pairs to the count of groups
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
        """Give every process whole batches; Trainer's own gives each process rows of its own."""
        sampler = sampler_fn(dataset) if sampler_fn else None
        loader = DataLoader(dataset, batch_size, sampler=sampler, collate_fn=self.data_collator)
        single = {"num_processes": 1, "process_index": 0, "put_on_device": True}
        seeded = {"use_seedable_sampler": True, "data_seed": self.args.data_seed}
        return prepare_data_loader(loader, self.accelerator.device, **single, **seeded)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        barrier()  # the main process writes what makes a checkpoint whole only when each process's part is there


def step_arguments(
    step: StepConfig, folder: Path, count: int, seed: int, shared: bool, report_to: Sequence[str]
) -> TrainingArguments:
    """Return Trainer's arguments for a step over `count` training rows; `shared`: see `StepTrainer`."""
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
        max_grad_norm=0,  # each expert is clipped by itself
        logging_steps=max(every // 4, 1),
        seed=(seed + rank() * shared) % 2**32,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        ddp_broadcast_buffers=False,  # statistics, which no step changes
        ddp_find_unused_parameters=False,  # every part of a batch uses all that is trained
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


class _KeepTheLast(TrainerCallback):
    """Removes all checkpoints but the last two. Trainer itself goes by their times, so by a clock that may jump."""

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
    """Hide the warnings of a Trainer that is used in ways it does not expect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
