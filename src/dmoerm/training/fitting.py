"""Fit the trainable parameters of a loss module with transformers' `Trainer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from torch import nn
from transformers import TrainerCallback, TrainerState

from ..config import StepConfig
from ..model.layers import Decoder
from .batches import Collate
from .checkpoints import disk_full_as_error, last_checkpoint, stopped_early
from .processes import broadcast, is_main
from .tracking import BestTracker
from .trainer import StepTrainer, quiet, step_arguments


class FitOptions(TypedDict):
    """Options of `fit` that the run and the step's folder determine."""

    folder: Path
    seed: int
    report_to: Sequence[str]
    callbacks: Sequence[TrainerCallback]


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
    shared: bool | None = None,
    report_to: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> list[FitResult]:
    """Train the trainable parameters, restore each expert's best state, and return how each expert ended.

    The start is a candidate too. If `metric_for_best_model` is `end`, the last state is kept.

    Checkpoints are written to `folder`; if it has some, training resumes from the last complete one.

    Args:
        module: maps a batch of `collate` to `RowLosses`.
        shared: `collate` returns this process's shard of a batch, and each process draws its own dropout. Otherwise
            every process computes the whole batch, which for heads on vectors is faster than to communicate. None:
            true if layers of a decoder are trained.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: the disk is full.
    """
    shared = _trains_decoder(module) if shared is None else shared
    tracker = BestTracker(module, step)
    args = step_arguments(step, folder, len(train), seed, shared, report_to)
    trainer = StepTrainer(
        tracker, train, validation or train, collate=collate, step=step, args=args, shared=shared, callbacks=callbacks
    )
    with quiet():
        trainer.evaluate()
        if step.epochs > 0:
            if not tracker.is_sharded:  # DDP must not average what FSDP2 does
                trainer.forget_preparation()
            checkpoint = broadcast(last_checkpoint(folder) if is_main() else None)
            if checkpoint and stopped_early(checkpoint, step.patience):
                trainer.args.max_steps = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").global_step
            with disk_full_as_error(folder):
                trainer.train(resume_from_checkpoint=checkpoint)
            trainer.evaluate()
    tracker.restore_best()
    module.eval()
    best = zip(tracker.best_loss.tolist(), tracker.best_accuracy.tolist(), strict=True)
    return [FitResult(loss, accuracy, trainer.state.global_step) for loss, accuracy in best]


def _trains_decoder(module: nn.Module) -> bool:
    decoders = (part for part in module.modules() if isinstance(part, Decoder))
    return any(p.requires_grad for decoder in decoders for p in decoder.parameters())
