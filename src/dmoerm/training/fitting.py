"""One step of the training: a module, its items, and transformers' `Trainer`.

Whatever a step trains (heads on vectors, a branch, a task's experts, the aggregator, the router), it is a module that
returns `loss`, `margins` and `weights` for a batch; a margin above 0 is a pair (or a routed prompt) put right.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalPrediction, rotate_checkpoints

from ..config import StepConfig
from ..errors import TrainingError
from .batches import Collate
from .checkpoints import had_ended, last_checkpoint, room
from .learner import Learner
from .processes import agreed, barrier, gathered_rows, is_main, rank


@dataclass(frozen=True)
class Fit:
    """How a lane ended: its best validation loss and consistency, and the steps that were made."""

    loss: float
    consistency: float
    steps: int


def fit(
    model: nn.Module,
    train: Sequence[Any],
    validation: Sequence[Any],
    *,
    collate: Collate,
    step: StepConfig,
    folder: Path,
    seed: int,
    shared: bool = False,
    report_to: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> list[Fit]:
    """Trains the parameters that want gradients, leaves each lane's best in place, and says how each lane ended.

    The start is a candidate too. Where `metric_for_best_model` is `end`, the last ones stay.

    Checkpoints lie in `folder`; if some are there, training goes on from the last.

    Args:
        shared: `collate` gives each process its groups of a batch, and so each draws its own dropout; else each
            computes the whole batch, which for heads on vectors takes less time than to divide it.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: the disk is full.
    """
    learner = Learner(model, step)
    trainer = _PhaseTrainer(
        model=learner,
        args=_arguments(step, folder, len(train), seed, shared, report_to),
        train_dataset=_Rows(train),
        eval_dataset=_Rows(validation or train),
        data_collator=collate,
        callbacks=[*callbacks, _KeepTheLast()],
        optimizers=(_optimiser(learner, step), None),
    )
    trainer.remove_callback(PrinterCallback)
    with _quiet():
        trainer.evaluate()
        if step.epochs > 0:
            vars(learner).pop("_is_accelerate_prepared", None)  # it was, but for evaluation alone: without DDP
            checkpoint = agreed(last_checkpoint(folder) if is_main() else None)
            if checkpoint and had_ended(checkpoint, step.patience):
                trainer.args.max_steps = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").global_step
            with room(folder):
                trainer.train(resume_from_checkpoint=checkpoint)
            trainer.evaluate()
    learner.take_best()
    model.eval()
    return [
        Fit(loss, consistency, trainer.state.global_step)
        for loss, consistency in zip(learner.best_loss.tolist(), learner.best_consistency.tolist(), strict=True)
    ]


def _arguments(
    step: StepConfig, folder: Path, count: int, seed: int, shared: bool, report_to: Sequence[str]
) -> TrainingArguments:
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
        max_grad_norm=0,  # each lane is clipped by itself
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


def _optimiser(learner: Learner, step: StepConfig) -> torch.optim.Optimizer:
    """AdamW; heads may have a rate of their own."""
    heads = [p for name, p in learner.trained() if "head" in name.split(".")]
    others = [p for name, p in learner.trained() if "head" not in name.split(".")]
    groups = [
        {"params": others, "lr": step.learning_rate},
        {"params": heads, "lr": getattr(step, "head_learning_rate", None) or step.learning_rate},
    ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=step.weight_decay)
    optimiser.register_step_pre_hook(lambda *_: learner.clip())
    return optimiser


class _KeepTheLast(TrainerCallback):
    """Removes all checkpoints but the last two. Trainer itself would go by their times, so by a clock that may jump."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            rotate_checkpoints(str(args.output_dir), save_total_limit=2)


class _PhaseTrainer(Trainer):
    """`Trainer` for a `Learner`: predictions are margins, an evaluation is by lane, a batch may come in parts.

    The loss is a mean already, so accumulation divides it. Every process is given the batches that a single one would
    have, whole and in the same order; `collate` divides them, and the gradients' mean is the batch's.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.learner: Learner = kwargs["model"]
        self.compute_metrics = self._measure

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One backward pass a part: the parts' losses add up to the batch's."""
        *parts, last = inputs.get("parts", [inputs])
        one = functools.partial(super().training_step, model)
        with self.accelerator.no_sync(model):  # others may have more parts or fewer: gradients meet at the last one
            losses = [one(part, *args, **kwargs) for part in parts]
        return torch.stack([*losses, one(last, *args, **kwargs)]).sum()

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        with torch.no_grad(), self.compute_loss_context_manager():
            ready: Any = self._prepare_inputs(inputs)
            found = [model(**part) for part in ready.get("parts", [ready])]
        margins, weights = (torch.cat([part[name] for part in found]) for name in ("margins", "weights"))
        lane = torch.cat([part.get("lane", torch.zeros_like(part["margins"], dtype=torch.long)) for part in found])
        probability = torch.cat([part.get("probability", torch.ones_like(part["margins"])) for part in found])
        rows = (margins.float(), weights, lane, 2 * probability - 1)
        margins, *labels = gathered_rows(rows) if "parts" in ready else rows  # zeros are ties of weight 0
        return found[0]["loss"], margins, tuple(labels)

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """Each lane's loss over all groups at once, and its share of margins above 0; their means are the metrics.

        In the share a pair counts by how far from a tie it is.
        """
        margins = np.asarray(prediction.predictions).astype(np.float64)
        weights, lane, sure = map(np.asarray, prediction.label_ids)
        count = lambda values: np.bincount(lane, values, self.learner.lanes)  # noqa: E731
        loss = count((np.logaddexp(0, -margins) + (1 - sure) / 2 * margins) * weights) / count(weights)
        consistency = count((margins > 0) * sure) / count(sure).clip(min=1e-12)
        loss, consistency = agreed((loss, consistency))  # whether to stop is decided once
        # At once: else the step would end with an earlier state as its best.
        if not np.isfinite(loss[self.learner.open]).all():
            step = str(self.args.output_dir).rpartition("checkpoints/")[2]
            raise TrainingError(f"{step}: the loss is not finite; lower the step's learning_rate")
        self.learner.consider(torch.from_numpy(loss), torch.from_numpy(consistency))
        return {"loss": float(loss.mean()), "consistency": float(consistency.mean())}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.gather_function = lambda rows: rows  # they are all here; the default cuts pairs to the count of groups
        found = super().evaluate(*args, **kwargs)
        self.control.should_training_stop |= not self.learner.open
        return found

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """Whole batches for every process; Trainer's own would give each process rows of its own."""
        sampler = sampler_fn(dataset) if sampler_fn else None
        loader = DataLoader(dataset, batch_size, sampler=sampler, collate_fn=self.data_collator, pin_memory=True)
        single = {"num_processes": 1, "process_index": 0, "put_on_device": True}
        seeded = {"use_seedable_sampler": True, "data_seed": self.args.data_seed}
        return prepare_data_loader(loader, self.accelerator.device, **single, **seeded)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        barrier()  # the main process writes what makes a checkpoint whole only when each process's part is there


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the warnings of a Trainer used in ways it does not expect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
