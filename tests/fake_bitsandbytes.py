"""The part of bitsandbytes that transformers uses for 4 bits, computed by PyTorch on any device."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers.integrations import bitsandbytes as integration
from transformers.quantizers import quantizer_bnb_4bit

BLOCK = 64
_NEGATIVE = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
_POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF4 = torch.tensor((*_NEGATIVE, *_POSITIVE))


class QuantState(NamedTuple):
    absmax: Tensor
    shape: torch.Size
    dtype: torch.dtype


class Params4bit(nn.Parameter):
    """`data` is the weight until `to` encodes it, then its codes."""

    quant_state: QuantState | None = None

    def __new__(cls, data: Tensor, requires_grad: bool = True, **options: Any):
        new = torch.Tensor._make_subclass(cls, data, requires_grad)
        new.__dict__.update(options)
        return new

    def to(self, *_: Any, **__: Any) -> Params4bit:
        assert self.quant_type == "nf4"
        assert not self.compress_statistics
        if self.quant_state is not None:
            return self
        blocks = pad(self.data.flatten().float(), (0, -self.numel() % BLOCK)).reshape(-1, BLOCK)
        absmax = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
        codes = torch.bucketize(blocks / absmax, (NF4[1:] + NF4[:-1]) / 2).to(torch.uint8)
        return Params4bit(codes, False, **self.__dict__ | {"quant_state": QuantState(absmax, self.shape, self.dtype)})


def dequantize_4bit(codes: Tensor, state: QuantState) -> Tensor:
    values = NF4[codes.long()] * state.absmax
    return values.flatten()[: state.shape.numel()].reshape(state.shape).to(state.dtype)


class Linear4bit(nn.Linear):
    def __init__(self, width: int, outputs: int, bias: bool, compute_dtype: Any, **options: Any) -> None:
        super().__init__(width, outputs, bias=bias)
        self.compute_dtype = compute_dtype
        self.weight = Params4bit(self.weight.data, False, **options)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.quant_state is not None:
            destination[f"{prefix}weight.absmax"] = self.weight.quant_state.absmax

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize_4bit(self.weight.data, self.weight.quant_state)
        return linear(x.to(self.compute_dtype), weight, self.bias).to(x.dtype)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers use this module as bitsandbytes."""
    package = ModuleType("bitsandbytes")
    package.nn = SimpleNamespace(Linear4bit=Linear4bit, Params4bit=Params4bit)
    package.functional = SimpleNamespace(dequantize_4bit=dequantize_4bit)
    package.supported_torch_devices = {"cpu"}
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", package)
    monkeypatch.setattr(integration, "bnb", package, raising=False)
    monkeypatch.setattr(integration, "get_available_devices", lambda: {"cpu"})
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: True)
