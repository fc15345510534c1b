"""What two models must have in common so that a task of one works in the other, by digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from ..config import AggregatorConfig, EncodingConfig, HeadConfig, LoRAConfig
from ..errors import CheckpointError
from .mixture import Mixture
from .task_model import TaskModel

_DIGITS = 16
_SETTINGS = {"encoding": EncodingConfig, "head": HeadConfig, "lora": LoRAConfig, "aggregator": AggregatorConfig}


def digest(*parts: nn.Module | None) -> str:
    """Return a digest of all weights of the parts, with their names, dtypes and shapes."""
    result = hashlib.sha256()
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()) if part is not None else ():
            result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return result.hexdigest()[:_DIGITS]


def check_same_trunk(model: Mixture, other: Mixture, names: tuple[str, str]) -> None:
    """Raise `CheckpointError` unless tasks of both models read the same inputs in the same form.

    Args:
        names: of the two models, for the message.
    """
    mine, theirs = _common(model), _common(other)
    if different := [name for name in mine if mine[name] != theirs[name]]:
        values = ", ".join(f"{name} ({mine[name]} and {theirs[name]})" for name in different)
        raise CheckpointError(f"{names[0]} and {names[1]}: differ in {values}; merge models grown from the same model")


def check_same_general(model: Mixture, other: Mixture, task: str, name: str) -> None:
    """Raise `CheckpointError` if a task of `other` reads its general model's score and `model` has another one.

    Args:
        name: of `other`, for the message.
    """
    if not _reads_general(other.task_model(task)) or _general(model) == _general(other):
        return
    hint = "grow both from the same model, or train with phase3.base_scores=[per_task, all_labels]"
    values = f"{_general(other)}, not {_general(model)}"
    raise CheckpointError(f"{name}: task {task!r} reads the score of another general model ({values}); {hint}")


def _reads_general(task_model: TaskModel) -> bool:
    linear = task_model.aggregator.linear
    return task_model.reads_general and linear is not None and bool(linear.weight[len(task_model.experts) + 1] != 0)


def _general(model: Mixture) -> str:
    return digest(model.general.branch, model.general.head)


def _common(model: Mixture) -> dict[str, Any]:
    """Return name → value or digest of what all tasks of a model share."""
    config = model.config
    shared = model.general.branch if config.shared_branch else None
    values: dict[str, Any] = {
        "trunk": digest(model.trunk, shared),
        "router": digest(model.router.language_model),
        "tokenizer": _text_digest([sorted(model.tokenizer.get_vocab().items()), model.tokenizer.chat_template]),
    }
    values |= {name: getattr(config, name) for name in ("branch_layer", "shared_branch", "router_kind")}
    return values | {n: kind(**getattr(config, n)).model_dump(mode="json") for n, kind in _SETTINGS.items()}


def _text_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_DIGITS]
