"""Hold the frozen linear layers of a model in 4 bits (NF4, arXiv 2305.14314), by bitsandbytes on CUDA.

Layers compute in their own dtype with weights that are decoded for each call; gradients flow through them to LoRA.
A checkpoint has no quantized weights: `dense_state` decodes them to the dtype that they had. Each block's largest
weight is a value of the code, so that quantizing the decoded weights gives the same 4 bits again: a saved model scores
alike with and without quantization, up to rounding.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

_DEVICES = ("cuda",)
_LIBRARY = "bitsandbytes"


def quantize(model: Any, device: torch.device) -> None:
    """Replace the linear layers of trunk and shared branch, in place, by 4-bit layers on the device.

    Args:
        model: a `Mixture` whose tasks share the general branch, with its weights in CPU memory.

    Raises:
        ConfigError: the branches are trained, the device is not a GPU, or bitsandbytes is not installed.
    """
    if not model.config.shared_branch or model.config.router_kind == "own":
        raise ConfigError("quantization: 4bit holds frozen weights only; it needs a model of base: frozen")
    modules = _library(device)
    quantized: dict[int, nn.Module] = {}  # a layer that several branches share stays shared
    for parent, name, layer in list(_linear_layers(model)):
        if id(layer) not in quantized:
            quantized[id(layer)] = _quantized(layer, modules, device)
        setattr(parent, name, quantized[id(layer)])


def _linear_layers(model: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield the linear layers of trunk and branches, those below a LoRA included, with their parents."""
    experts = (model.task_model(task).experts.branch for task in model.config.tasks)
    for part in (model.trunk, model.general.branch, *experts):
        for parent in part.modules() if part is not None else ():
            for name, child in parent.named_children():
                if type(child) is nn.Linear:
                    yield parent, name, child


def _library(device: torch.device) -> Any:
    """Return `bitsandbytes.nn`."""
    if device.type not in _DEVICES:
        raise ConfigError(f"quantization: 4bit needs a CUDA GPU, but the device is {device.type}; set it to none")
    try:
        return importlib.import_module(f"{_LIBRARY}.nn")
    except ImportError as error:
        hint = "pip install 'dmoerm[quantization]'"
        raise ConfigError(f"quantization: 4bit needs the package {_LIBRARY} ({error}); {hint}") from None


def _quantized(layer: nn.Linear, modules: Any, device: torch.device) -> nn.Module:
    sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
    dtype = layer.weight.dtype
    # without compressed statistics, so that the decoded weights give the same bits again
    new = modules.Linear4bit(*sizes, bias=bias, compute_dtype=dtype, compress_statistics=False, quant_type="nf4")
    new.weight = modules.Params4bit(
        layer.weight.detach().contiguous(), requires_grad=False, compress_statistics=False, quant_type="nf4"
    )
    if bias:
        new.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return new.to(device).requires_grad_(False)  # the weights are encoded on the way to the device


def dense_state(part: nn.Module) -> dict[str, Tensor]:
    """Return the state of a part of the model with decoded weights in place of quantized ones."""
    state = part.state_dict()
    for name, module in part.named_modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            for key in [key for key in state if key.startswith(f"{name}.") and key != f"{name}.bias"]:
                del state[key]
            state[f"{name}.weight"] = _decoded(module)
    return state


def _decoded(module: nn.Module) -> Tensor:
    functional = importlib.import_module(f"{_LIBRARY}.functional")
    weight: Any = module.weight
    return functional.dequantize_4bit(weight.data, weight.quant_state)
