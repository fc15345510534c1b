"""The LoRA of an expert as a PEFT adapter: adapter_config.json and adapter_model.safetensors in a folder.

Layers have the numbers of the whole decoder: those of the branch, after `first_layer` layers of the trunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import LoRAConfig
from ..errors import CheckpointError
from .experts import Experts, lora_layers
from .integrity import read_tensors, write_tensors

_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def write_adapter(experts: Experts, index: int, first_layer: int, folder: Path) -> None:
    """Write the adapter of one expert into a new folder."""
    _adapter_config(experts, first_layer).save_pretrained(str(folder))
    write_tensors(_state(experts, index, first_layer), folder / _FILE)


def read_adapter(experts: Experts, index: int, first_layer: int, folder: Path) -> dict[str, Tensor]:
    """Read the tensors of one expert's adapter. Raises `CheckpointError` unless they fit the experts."""
    state, expected = read_tensors(folder / _FILE), _state(experts, index, first_layer)
    if {n: t.shape for n, t in expected.items()} != {n: t.shape for n, t in state.items()}:
        raise CheckpointError(f"{folder / _FILE}: its tensors do not fit config.json")
    return state


@torch.no_grad()
def fill_adapter(experts: Experts, index: int, first_layer: int, state: Mapping[str, Tensor]) -> None:
    """Set the LoRA of one expert to the tensors of `read_adapter`."""
    for name, tensor in _state(experts, index, first_layer).items():
        tensor.copy_(state[name])


def _state(experts: Experts, index: int, first_layer: int) -> dict[str, Tensor]:
    """Return an expert's LoRA under PEFT's names, with the layer numbers of the whole decoder."""
    state: dict[str, Tensor] = {}
    for name, layer in lora_layers(experts.branch or nn.Module()).items():
        prefix = _PREFIX + _renumber(name, first_layer)
        state[f"{prefix}.lora_A.weight"] = layer.lora_A[index]
        state[f"{prefix}.lora_B.weight"] = layer.lora_B[index]
    return state


def _adapter_config(experts: Experts, first_layer: int) -> Any:
    from peft import LoraConfig, TaskType

    config: LoRAConfig = experts.config
    names = [_renumber(name, first_layer) for name in lora_layers(experts.branch or nn.Module())]
    adapter_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        task_type=TaskType.FEATURE_EXTRACTION,
        inference_mode=True,
    )
    # not an argument above: PEFT would make it a set, whose order differs between processes
    adapter_config.target_modules = names
    return adapter_config


def _renumber(name: str, first_layer: int) -> str:
    return re.sub(r"^layers\.(\d+)", lambda match: f"layers.{int(match[1]) + first_layer}", name)
