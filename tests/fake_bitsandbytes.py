"""The part of bitsandbytes' interface that dmoerm uses, with its codes computed by PyTorch on any device.

As in the library, weights are encoded when the layer moves to its device: NF4 in blocks of 64 with a float32 scale
each, and 8 bits with a scale per output, which the first call moves from the weight to the layer's state.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

BLOCK = 64
_NEGATIVE = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
_POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF4 = torch.tensor((*_NEGATIVE, *_POSITIVE))


class QuantState(NamedTuple):
    absmax: Tensor
    shape: torch.Size
    dtype: torch.dtype


class Params4bit(nn.Parameter):
    """`data` is the weight until it is encoded, then its codes."""

    quant_state: QuantState | None = None

    def __new__(cls, data: Tensor, requires_grad: bool = True, compress_statistics: bool = True, quant_type: str = ""):
        assert not requires_grad
        assert not compress_statistics
        assert quant_type == "nf4"
        return torch.Tensor._make_subclass(cls, data, requires_grad)

    def encoded(self) -> Params4bit:
        blocks = nn.functional.pad(self.data.flatten().float(), (0, -self.numel() % BLOCK)).reshape(-1, BLOCK)
        absmax = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
        codes = torch.bucketize(blocks / absmax, (NF4[1:] + NF4[:-1]) / 2).to(torch.uint8)
        new = torch.Tensor._make_subclass(Params4bit, codes, False)
        new.quant_state = QuantState(absmax, self.shape, self.dtype)
        return new


def dequantize_4bit(codes: Tensor, state: QuantState) -> Tensor:
    values = NF4[codes.long()] * state.absmax
    return values.flatten()[: state.shape.numel()].reshape(state.shape).to(state.dtype)


class Linear4bit(nn.Linear):
    def __init__(self, width: int, outputs: int, bias: bool, compute_dtype: Any, **options: Any) -> None:
        super().__init__(width, outputs, bias=bias)
        self.compute_dtype, self.options = compute_dtype, options

    def to(self, *args: Any, **kwargs: Any) -> Linear4bit:
        assert self.options == {"compress_statistics": False, "quant_type": "nf4"}
        if self.weight.quant_state is None:
            self.weight = self.weight.encoded()
        return super().to(*args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = self.weight.quant_state.absmax

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize_4bit(self.weight.data, self.weight.quant_state)
        return linear(x.to(self.compute_dtype), weight, self.bias).to(x.dtype)


class Int8Params(nn.Parameter):
    """`data` is the weight until it is encoded, then its codes."""

    SCB: Tensor | None = None

    def __new__(cls, data: Tensor, requires_grad: bool = True, has_fp16_weights: bool = True):
        assert not requires_grad
        assert not has_fp16_weights
        return torch.Tensor._make_subclass(cls, data, requires_grad)

    def encoded(self) -> Int8Params:
        scales = self.data.float().abs().amax(1).clamp(min=1e-30)
        codes = (self.data.float() * (127 / scales[:, None])).round().to(torch.int8)
        new = torch.Tensor._make_subclass(Int8Params, codes, False)
        new.SCB = scales
        return new


class Linear8bitLt(nn.Linear):
    """Without the rounding of inputs, which the library does on CUDA."""

    def __init__(self, width: int, outputs: int, bias: bool, has_fp16_weights: bool, threshold: float) -> None:
        super().__init__(width, outputs, bias=bias)
        assert not has_fp16_weights
        assert threshold > 0
        self.state = SimpleNamespace(SCB=None)

    def to(self, *args: Any, **kwargs: Any) -> Linear8bitLt:
        if self.weight.dtype != torch.int8:
            self.weight = self.weight.encoded()
        return super().to(*args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}SCB"] = self.weight.SCB if self.state.SCB is None else self.state.SCB

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.SCB is not None:
            self.state.SCB, self.weight.SCB = self.weight.SCB, None
        weight = self.weight.data.float() * self.state.SCB[:, None] / 127
        return linear(x, weight.to(x.dtype), self.bias)


def modules() -> dict[str, ModuleType]:
    """Return the fake package and its modules, for `sys.modules`."""
    package, layers, functional = (ModuleType(f"bitsandbytes{name}") for name in ("", ".nn", ".functional"))
    layers.Linear4bit, layers.Params4bit = Linear4bit, Params4bit
    layers.Linear8bitLt, layers.Int8Params = Linear8bitLt, Int8Params
    functional.dequantize_4bit = dequantize_4bit
    return {module.__name__: module for module in (package, layers, functional)}
