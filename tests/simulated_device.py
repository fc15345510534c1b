"""A second device on the CPU, `sim:0`: it refuses tensors of two devices, and counts what crosses between them.

A tensor of the device wraps a CPU tensor with its values. `using_device` sends every operation of PyTorch through
`_run`, which checks and counts, so that code which is written for a GPU runs here as it would there:

    uploads     copies from the CPU; those that are not `non_blocking` are `waits` as well
    waits       the host waits for the device: copies to the CPU, `.item()`, operations with results of unknown size

PyTorch starts a thread per device at the first backward pass, so that the device is registered when this module is
imported, before any test runs. Outside of `using_device` it has no device, and other tests do not see it.

PyTorch's registration of devices in Python needs PyTorch 2.9 or newer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

pytest.importorskip("torch", minversion="2.9")

from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "sim"
aten = torch.ops.aten
_UNKNOWN_SIZES = ("nonzero", "masked_select", "unique", "bincount", "repeat_interleave", "equal")
_AUTOCAST = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")


class DeviceTensor(Tensor):
    """A tensor on the simulated device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        shape = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, values.size(), device=f"{NAME}:0", **shape)
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.values})"


class Traffic:
    """What crosses between the devices: the names of the operations."""

    def __init__(self) -> None:
        self.uploads: list[str] = []
        self.waits: list[str] = []


_traffic = Traffic()
_active = False


@contextlib.contextmanager
def using_device() -> Iterator[Traffic]:
    """Run with the device; yield what crosses between the devices within."""
    global _traffic, _active
    _traffic, _active = Traffic(), True
    try:
        with _Mode():
            yield _traffic
    finally:
        _active = False


def to_device(module: nn.Module) -> nn.Module:
    """Move a module in place; `Module.to` would give each user of a shared parameter its own."""
    moved: dict[int, Any] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    copy = moved.setdefault(id(tensor), _on_device(tensor))
                    tensors[name] = copy
    return module


def _on_device(tensor: Tensor) -> Any:
    copy = DeviceTensor(tensor.detach().clone())
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


def reference_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score_mod: Any,
    block_mask: Any,
    scale: Any,
    enable_gqa: bool,
    **_: Any,
) -> Tensor:
    """Compute FlexAttention from its definition: PyTorch's runs on the devices that it knows only."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    queries, keys = (torch.arange(x.shape[2], device=query.device) for x in (query, key))
    scores = query.float() @ key.float().transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if score_mod is None else score_mod(scores, None, None, None, None)
    visible = block_mask.mask_mod(None, None, queries[:, None], keys)
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value.float()).to(value.dtype)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._can_decompose():  # in inference mode, functions such as `to` come here whole
            with self:
                result = func.decompose(*args, **kwargs or {})
            # a tensor that is not inference mode's must not be returned as it is
            return DeviceTensor(result.values) if isinstance(result, DeviceTensor) and result is args[0] else result
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the values, and wrap its results if they are on the device."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = any(isinstance(x, DeviceTensor) for x in tensors)
    device = kwargs.get("device")
    there = here if device is None else torch.device(device).type == NAME
    if not here and not there:
        return func(*args, **kwargs)
    _check(func, args, tensors, here, there, kwargs)
    plain = tree_map(lambda x: x.values if isinstance(x, DeviceTensor) else x, (args, kwargs))
    if device is not None:
        plain[1]["device"] = "cpu"
    result = func(*plain[0], **plain[1])
    if not func._schema.returns:  # in place on lists
        return None
    if func._schema.name.endswith("_") or func._overloadname.endswith("out"):
        return kwargs.get("out", args[0])
    return tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) else x, result) if there else result


def _check(func: Any, args: Any, tensors: list[Tensor], here: bool, there: bool, kwargs: Any) -> None:
    """Count what crosses between the devices; refuse operations on tensors of both."""
    name = func._schema.name.removeprefix("aten::")
    if name in ("_to_copy", "copy_"):
        source, target = (tensors[-1], args[0]) if name == "copy_" else (args[0], None)
        from_device = isinstance(source, DeviceTensor)
        to_device_ = there if target is None else isinstance(target, DeviceTensor)
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        _count(from_device, to_device_, source, waits)
    elif name == "_local_scalar_dense" or (name.startswith(_UNKNOWN_SIZES) and "output_size" not in kwargs):
        _traffic.waits.append(name)
    elif name.startswith("index") and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if isinstance(x, Tensor)):
        _traffic.waits.append(f"{name} by a mask")
    if here and name not in ("_to_copy", "copy_"):
        others = [x for x in tensors if not isinstance(x, DeviceTensor) and x.dim()]
        if others:
            raise RuntimeError(
                f"{name}: expected all tensors on {NAME}:0, but found one of {others[0].shape} on the CPU"
            )


def _count(from_device: bool, to_device: bool, source: Tensor, waits: bool) -> None:
    if from_device and not to_device:
        _traffic.waits.append(f"copy of {tuple(source.shape)} to the CPU")
    if to_device and not from_device and source.dim():
        _traffic.uploads.append(f"copy of {tuple(source.shape)} to the device")
        if waits:
            _traffic.waits.append(f"blocking copy of {tuple(source.shape)} to the device")


class _Backend(_DummyBackendModule):
    def is_available(self) -> bool:
        return _active

    def device_count(self) -> int:
        return int(_active)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, _: Any = None) -> Tensor:
        return torch.zeros(1)

    def set_rng_state(self, *_: Any) -> None:
        pass


def _factory(func: Any) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: DeviceTensor(func(*args, **kwargs | {"device": "cpu"}))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _run(aten.copy_.default, (target, source, non_blocking), {})
    return target


def _cast_first(func: Any) -> Callable[..., Tensor]:
    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(NAME)
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            cast = (x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
            return func(*cast, **kwargs)

    return kernel


def _register() -> list[torch.library.Library]:
    """Register the device, what PyTorch's C++ code calls itself, and autocast."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    kernels = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name in ("empty.memory_format", "empty_strided"):
        kernels.impl(name, _factory(getattr(aten, name.split(".")[0])))
    kernels.impl("_copy_from", _copy_from)
    casts = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for name in _AUTOCAST:
        casts.impl(name, _cast_first(getattr(aten, name)))
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    return [kernels, casts, others]


_LIBRARIES = _register()  # kept: a library that is collected unregisters its kernels
