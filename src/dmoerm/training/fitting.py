"""One step of the training: a loss module, its rows, and transformers' `Trainer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerState

from ..config import StepConfig
from .batches import Collate
from .checkpoints import had_ended, last_checkpoint, room
from .processes import agreed, is_main
from .tracking import BestTracker
from .trainer import StepTrainer, quiet, step_arguments


@dataclass(frozen=True)
class FitResult:
    """How an expert ended: its best validation loss and accuracy, and the steps that were made."""

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
    shared: bool = False,
    report_to: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> list[FitResult]:
    """Train the trainable parameters, restore each expert's best state, and return how each expert ended.

    The start is a candidate too. Where `metric_for_best_model` is `end`, the last state stays.

    Checkpoints lie in `folder`; if some are there, training goes on from the last.

    Args:
        module: maps a batch of `collate` to `RowLosses`.
        shared: `collate` gives each process its groups of a batch, and so each draws its own dropout; else each
            computes the whole batch, which for heads on vectors takes less time than to divide it.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: the disk is full.
    """
    tracker = BestTracker(module, step)
    args = step_arguments(step, folder, len(train), seed, shared, report_to)
    trainer = StepTrainer(
        tracker, train, validation or train, collate=collate, step=step, args=args, shared=shared, callbacks=callbacks
    )
    with quiet():
        trainer.evaluate()
        if step.epochs > 0:
            trainer.forget_preparation()
            checkpoint = agreed(last_checkpoint(folder) if is_main() else None)
            if checkpoint and had_ended(checkpoint, step.patience):
                trainer.args.max_steps = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").global_step
            with room(folder):
                trainer.train(resume_from_checkpoint=checkpoint)
            trainer.evaluate()
    tracker.restore_best()
    module.eval()
    best = zip(tracker.best_loss.tolist(), tracker.best_accuracy.tolist(), strict=True)
    return [FitResult(loss, accuracy, trainer.state.global_step) for loss, accuracy in best]
