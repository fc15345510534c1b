"""Hold the frozen linear layers of a model in 8 or 4 bits: by bitsandbytes on CUDA, by torchao on a CPU.

              CUDA (bitsandbytes)                             CPU (torchao)
    4bit      NF4 (arXiv 2305.14314)                          NF4, with scales in 8 bits
    8bit      LLM.int8 (arXiv 2208.07339), inputs too         integers with a scale per output

Layers compute in their own dtype with weights that are decoded for each call; gradients flow through them to LoRA.
A checkpoint has no quantized weights: `dense_state` decodes them to the dtype that they had. In bitsandbytes' codes
the largest weight of each scale is a value of the code, so that quantizing the decoded weights gives the same bits
again: a saved model scores alike with and without quantization, up to rounding.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

_PACKAGES = {"cuda": "bitsandbytes", "cpu": "torchao"}
_BLOCK, _SCALES = 64, 256  # of NF4 by torchao: weights of a scale, scales of a scale of scales
_Encoder = Callable[[nn.Linear, str, torch.device], nn.Module]


def quantize(model: Any, kind: str, device: torch.device) -> None:
    """Replace the linear layers of trunk and shared branch, in place, by quantized layers on the device.

    Args:
        model: a `Mixture` whose tasks share the general branch, with its weights in CPU memory.
        kind: `8bit` or `4bit`.

    Raises:
        ConfigError: the branches are trained, or the device has no package for it, or it is not installed.
    """
    if not model.config.shared_branch or model.config.router_kind == "own":
        raise ConfigError(f"quantization: {kind} holds frozen weights only; it needs a model of base: frozen")
    encode = _encoder(kind, device)
    quantized: dict[int, nn.Module] = {}  # a layer that several branches share stays shared
    for parent, name, layer in list(_linear_layers(model)):
        if id(layer) not in quantized:
            quantized[id(layer)] = encode(layer, kind, device)
        setattr(parent, name, quantized[id(layer)])


def _linear_layers(model: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield the linear layers of trunk and branches, those below a LoRA included, with their parents."""
    experts = (model.task_model(task).experts.branch for task in model.config.tasks)
    for part in (model.trunk, model.general.branch, *experts):
        for parent in part.modules() if part is not None else ():
            for name, child in parent.named_children():
                if type(child) is nn.Linear:
                    yield parent, name, child


def _encoder(kind: str, device: torch.device) -> _Encoder:
    """Return the function that quantizes a layer with the device's package."""
    package = _PACKAGES.get(device.type)
    if package is None:
        raise ConfigError(f"quantization: {kind} runs on CUDA GPUs and CPUs, but the device is {device.type}")
    try:
        importlib.import_module(package)
    except ImportError as error:
        hint = "pip install '.[quantization]' in dmoerm's folder"
        raise ConfigError(f"quantization: {kind} needs the package {package} ({error}); {hint}") from None
    return _by_torchao if package == "torchao" else _by_bitsandbytes


def _by_bitsandbytes(layer: nn.Linear, kind: str, device: torch.device) -> nn.Module:
    modules = importlib.import_module("bitsandbytes.nn")
    sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
    weight, dtype = layer.weight.detach().contiguous(), layer.weight.dtype
    if kind == "4bit":
        # without compressed statistics, so that the decoded weights give the same bits again
        options = {"compress_statistics": False, "quant_type": "nf4"}
        new = modules.Linear4bit(*sizes, bias=bias, compute_dtype=dtype, **options)
        new.weight = modules.Params4bit(weight, requires_grad=False, **options)
    else:
        new = modules.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False, threshold=6.0)
        new.weight = modules.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        new.dense_dtype = dtype
    if bias:
        new.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return new.to(device).requires_grad_(False)  # the weights are encoded on the way to the device


def _by_torchao(layer: nn.Linear, kind: str, device: torch.device) -> nn.Module:
    """Replace a layer's weight by a tensor that torchao's kernels read; the layer itself stays."""
    torchao: Any = importlib.import_module("torchao.quantization")
    if kind == "8bit":
        torchao.quantize_(layer, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    elif blocks := layer.weight.numel() // _BLOCK * (layer.weight.numel() % _BLOCK == 0):
        nf4: Any = importlib.import_module("torchao.quantization.quantize_.workflows")
        encoded = nf4.to_nf4(layer.weight.detach(), _BLOCK, math.gcd(blocks, _SCALES))
        layer.weight = nn.Parameter(encoded, requires_grad=False)
    return layer.to(device)


def dense_state(part: nn.Module) -> dict[str, Tensor]:
    """Return the state of a part of the model with decoded weights in place of quantized ones."""
    state = part.state_dict()
    for name, module in part.named_modules():
        if (weight := _decoded(module)) is not None:
            for key in [key for key in state if key.startswith(f"{name}.") and key != f"{name}.bias"]:
                del state[key]
            state[f"{name}.weight"] = weight
    return state


def _decoded(module: nn.Module) -> Tensor | None:
    """Return the decoded weight of a quantized layer; None for any other module."""
    weight: Any = getattr(module, "weight", None)
    if getattr(weight, "quant_state", None) is not None:  # 4 bits by bitsandbytes
        functional = importlib.import_module("bitsandbytes.functional")
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    if hasattr(weight, "SCB"):  # 8 bits by bitsandbytes; the first call of the layer moves the scales to its state
        scales = module.state.SCB if weight.SCB is None else weight.SCB  # pyright: ignore
        return (weight.data.float() * scales.float()[:, None] / 127).to(module.dense_dtype)  # pyright: ignore
    plain = None if weight is None else plain_tensor(weight)
    return None if plain is weight else plain


def plain_tensor(weight: Any) -> Tensor:
    """Return the decoded values of a tensor of torchao; any other tensor as it is."""
    if hasattr(weight, "get_original_weight"):  # NF4
        return weight.get_original_weight()
    return weight.dequantize() if hasattr(weight, "tensor_data_names") else weight
