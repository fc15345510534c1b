"""One step of the training: a module, its items, and transformers' `Trainer`.

Whatever a step trains (heads on vectors, a branch, a task's experts, the aggregator, the router), it is a module that
returns `loss`, `margins` and `weights` for a batch; a margin above 0 is a pair (or a routed prompt) put right.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint, rotate_checkpoints

from ..config import StepConfig
from ..errors import ArtefactError, TrainingError
from .batches import Collate
from .learner import Learner

_NO_ROOM = ("No space left", "file write failed", "unexpected pos", "quota exceeded")  # a full disk, by who writes


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
    bf16: bool = False,
    report_to: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> list[Fit]:
    """Trains the parameters that want gradients, leaves each lane's best in place, and says how each lane ended.

    The start is a candidate too. Where `best_by` is `end`, the last ones stay.

    Checkpoints lie in `folder`; if some are there, training goes on from the last.

    Raises:
        TrainingError: the loss is not finite.
        ArtefactError: the disk is full.
    """
    learner = Learner(model, step)
    trainer = _PhaseTrainer(
        model=learner,
        args=_arguments(step, folder, len(train), seed, bf16, report_to),
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
            checkpoint = last_checkpoint(folder)
            if checkpoint and _had_ended(checkpoint, step.patience):
                trainer.args.max_steps = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").global_step
            with _explained(folder):
                trainer.train(resume_from_checkpoint=checkpoint)
            trainer.evaluate()
    learner.take_best()
    model.eval()
    return [
        Fit(loss, consistency, trainer.state.global_step)
        for loss, consistency in zip(learner.best_loss.tolist(), learner.best_consistency.tolist(), strict=True)
    ]


def _had_ended(checkpoint: str, patience: int) -> bool:
    """Whether early stopping ended the training at this checkpoint; by itself, Trainer would go on from there."""
    return bool((load_file(f"{checkpoint}/model.safetensors")["waited"] >= patience).all())


def last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint; one that a kill or a full disk cut short is removed."""
    while folder.exists() and (checkpoint := get_last_checkpoint(str(folder))):
        try:
            json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def _arguments(
    step: StepConfig, folder: Path, count: int, seed: int, bf16: bool, report_to: Sequence[str]
) -> TrainingArguments:
    per_device = max(step.batch_groups // step.gradient_accumulation, 1)
    batches = -(-count // per_device)
    total = step.steps or max(round(-(-batches // step.gradient_accumulation) * step.epochs), 1)
    every = max(total // step.evaluations, 1)
    return TrainingArguments(
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
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=bf16,
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to=list(report_to) or "none",
        run_name=folder.parent.name,
    )


def _optimiser(learner: Learner, step: StepConfig) -> torch.optim.Optimizer:
    """AdamW; heads may have a rate of their own."""
    heads = [p for name, p in learner.trained() if "head" in name.split(".")]
    others = [p for name, p in learner.trained() if "head" not in name.split(".")]
    groups = [
        {"params": others, "lr": step.learning_rate},
        {"params": heads, "lr": step.head_learning_rate or step.learning_rate},
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

    The loss is a mean already, so accumulation divides it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.learner: Learner = kwargs["model"]
        self.compute_metrics = self._measure

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One backward pass a part: the parts' losses add up to the batch's."""
        parts = inputs.get("parts", [inputs])
        return torch.stack([super(_PhaseTrainer, self).training_step(model, p, *args, **kwargs) for p in parts]).sum()

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        with torch.no_grad(), self.compute_loss_context_manager():
            ready: Any = self._prepare_inputs(inputs)
            found = [model(**part) for part in ready.get("parts", [ready])]
        margins, weights = (torch.cat([part[name] for part in found]) for name in ("margins", "weights"))
        lane = torch.cat([part.get("lane", torch.zeros_like(part["margins"], dtype=torch.long)) for part in found])
        probability = torch.cat([part.get("probability", torch.ones_like(part["margins"])) for part in found])
        return found[0]["loss"].detach(), margins.detach().float(), (weights.detach(), lane, probability)

    def _measure(self, prediction: EvalPrediction) -> dict[str, float]:
        """Each lane's loss over all groups at once, and its share of margins above 0; their means are the metrics.

        In the share a pair counts by how far from a tie it is.
        """
        margins = np.asarray(prediction.predictions).astype(np.float64)
        weights, lane, probability = map(np.asarray, prediction.label_ids)
        sure = 2 * probability - 1
        count = lambda values: np.bincount(lane, values, self.learner.lanes)  # noqa: E731
        loss = count((np.logaddexp(0, -margins) + (1 - probability) * margins) * weights) / count(weights)
        consistency = count((margins > 0) * sure) / count(sure).clip(min=1e-12)
        # At once: else the step would end with an earlier state as its best.
        if not np.isfinite(loss[self.learner.open]).all():
            step = str(self.args.output_dir).rpartition("checkpoints/")[2]
            raise TrainingError(f"{step}: the loss is not finite; lower the step's learning_rate")
        self.learner.consider(torch.from_numpy(loss), torch.from_numpy(consistency))
        return {"loss": float(loss.mean()), "consistency": float(consistency.mean())}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.gather_function = self.accelerator.gather  # the default cuts the last batch's pairs to its count of groups
        found = super().evaluate(*args, **kwargs)
        self.control.should_training_stop |= not self.learner.open
        return found


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """A checkpoint that finds no room is one error, whoever was writing it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not any(sign in str(error) for sign in _NO_ROOM):
            raise
        raise ArtefactError(
            f"{folder}: a checkpoint cannot be written: {str(error).splitlines()[0]}; "
            "free some space and run again: training goes on from the last whole checkpoint"
        ) from error


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the warnings of a Trainer used in ways it does not expect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
