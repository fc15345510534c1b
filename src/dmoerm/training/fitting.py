"""One step of the training: a module, its items, and transformers' `Trainer`.

Whatever a step trains (a head on vectors, a branch, an expert, the aggregator, the router), it is a module that returns
`loss`, `margins` and `weights` for a batch; a margin above 0 is a pair (or a routed prompt) put right.
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
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from ..config import StepConfig
from ..errors import ArtefactError, TrainingError
from ..model.layout import Layout, Packed
from .batches import Collate
from .losses import pair_loss

_NO_ROOM = ("No space left", "file write failed", "unexpected pos", "quota exceeded")  # a full disk, by who writes


class PhaseModel(nn.Module):
    """A scorer under the preference loss.

    Args:
        scorer: maps vectors (N, D), or the packed hidden states of N responses, to rewards (N,).
        l2, pulled: the parameters pulled to where they start, and how strongly.
    """

    def __init__(self, scorer: nn.Module, l2: float = 0.0, pulled: nn.Module | None = None) -> None:
        super().__init__()
        self.scorer, self.l2 = scorer, l2
        self._pulled = [p for p in (pulled or nn.Module()).parameters() if p.requires_grad] if l2 else []
        self._start = [p.detach().clone() for p in self._pulled]

    def forward(self, better: Tensor, worse: Tensor, required: Tensor, weights: Tensor, **features: Tensor) -> Any:
        rewards = self.scorer(features["vectors"] if "vectors" in features else _packed(**features))
        margins = rewards[better] - rewards[worse]
        loss = pair_loss(margins - required, weights)
        for parameter, start in zip(self._pulled, self._start, strict=True):
            loss = loss + self.l2 / 2 * (parameter - start.to(parameter.device)).square().sum()
        return {"loss": loss, "margins": margins, "weights": weights}


def _packed(tokens: Tensor, prompts: Tensor, responses: Tensor, owner: Tensor) -> Packed:
    return Packed(tokens, Layout(prompts.tolist(), responses.tolist(), owner.tolist(), tokens.device))


@dataclass(frozen=True)
class Fit:
    """How a step ended: its best validation loss and consistency, and where it stopped."""

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
) -> Fit:
    """Trains the parameters that want gradients and leaves the best ones in place.

    The start is a candidate too. Where `best_by` is `end`, the last ones stay.

    Checkpoints lie in `folder`; if some are there, training goes on from the last.

    Raises:
        TrainingError: the loss is not finite.
        ArtefactError: the disk is full.
    """
    trainer = _PhaseTrainer(
        model=_OnlyTrained(model),
        args=_arguments(step, folder, len(train), seed, bf16, report_to),
        train_dataset=_Rows(train),
        eval_dataset=_Rows(validation or train),
        data_collator=collate,
        compute_metrics=_metrics,
        callbacks=[*([] if step.best_by == "end" else [EarlyStoppingCallback(step.patience)]), *callbacks],
        optimizers=(_optimiser(model, step), None),
    )
    trainer.remove_callback(PrinterCallback)
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}  # pyright: ignore
    with _quiet():
        found = trainer.evaluate()
        if step.epochs > 0:
            checkpoint = _last_checkpoint(folder)
            if checkpoint and _had_stopped(checkpoint, step.patience):
                trainer.args.max_steps = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").global_step
            with _explained(folder):
                trainer.train(resume_from_checkpoint=checkpoint)
            after = trainer.evaluate()
            if _better(after, found, step.best_by):
                found = after
            else:
                trainer.model.load_state_dict(start)  # pyright: ignore
    if not np.isfinite(found["eval_loss"]):
        raise TrainingError(f"{folder.name}: the loss is {found['eval_loss']}; lower the step's learning_rate")
    model.eval()
    return Fit(float(found["eval_loss"]), float(found["eval_consistency"]), trainer.state.global_step)


def _had_stopped(checkpoint: str, patience: int) -> bool:
    """Whether early stopping ended the training at this checkpoint; by itself, Trainer would go on from there."""
    callbacks: Any = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").stateful_callbacks
    stopping = callbacks.get("EarlyStoppingCallback")
    return stopping is not None and stopping["attributes"]["early_stopping_patience_counter"] >= patience


def _last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint; one that a kill or a full disk cut short is removed."""
    while folder.exists() and (checkpoint := get_last_checkpoint(str(folder))):
        try:
            json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def _better(new: dict[str, float], old: dict[str, float], by: str) -> bool:
    if by == "end":
        return True
    if by == "loss":
        return not new["eval_loss"] >= old["eval_loss"]
    return new["eval_consistency"] >= old["eval_consistency"]


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
        save_total_limit=2,
        load_best_model_at_end=step.best_by != "end",
        metric_for_best_model="consistency" if step.best_by == "consistency" else "loss",
        greater_is_better=step.best_by == "consistency",
        restore_callback_states_from_checkpoint=True,
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


def _optimiser(model: nn.Module, step: StepConfig) -> torch.optim.Optimizer:
    """AdamW; heads may have a rate of their own."""
    heads = [p for name, p in model.named_parameters() if p.requires_grad and "head" in name.split(".")]
    known = {id(p) for p in heads}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": others, "lr": step.learning_rate},
        {"params": heads, "lr": step.head_learning_rate or step.learning_rate},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=step.weight_decay)


class _PhaseTrainer(Trainer):
    """`Trainer` whose predictions are margins; the loss is a mean already, so accumulation divides it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**self._prepare_inputs(inputs))
        return output["loss"].detach(), output["margins"].detach().float(), output["weights"].detach()


class _OnlyTrained(nn.Module):
    """Passes everything on; its state is the parameters that are trained, so that checkpoints hold nothing else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **batch: Tensor) -> Any:
        return self.inner(**batch)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(state_dict[name])
        return _IncompatibleKeys([], [])


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The loss over all groups at once, and the share of margins above 0."""
    margins, weights = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return {
        "loss": float((np.logaddexp(0, -margins) * weights).sum() / weights.sum()),
        "consistency": float((margins > 0).mean()),
    }


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
