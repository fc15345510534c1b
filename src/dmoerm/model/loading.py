"""The options of `from_pretrained`: precision, device, quantization, hub; every other option is refused by name.

Callers such as RewardBench and TRL pass transformers' options on. An option has its effect, requests what a DMoERM
always does, or raises a `ConfigError`; none is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.integrations import bitsandbytes

from ..errors import ConfigError, shorten
from .attention import ATTENTION
from .configuration import DMoERMConfig
from .layers import Decoder

_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_SUPPORTED = ("dtype", "torch_dtype", "device_map", "quantization", "check", *_HUB)
_FROM_AUTO = ("adapter_kwargs", "config", "_from_auto", "_from_pipeline", "_commit_hash")  # transformers adds them
# Options accepted only at our fixed values.
_ALWAYS: dict[str, tuple[Any, ...]] = {
    "trust_remote_code": (True, False),  # a checkpoint contains no code
    "use_safetensors": (True,),
    "weights_only": (True,),
    "low_cpu_mem_usage": (True, False),
    "num_labels": (1,),
    "attn_implementation": ("sdpa", "dmoerm_packed"),
}
_QUANTIZED = 'use quantization="8bit" or "4bit"; dtype=torch.bfloat16 halves the memory'
_REASONS = {
    "quantization_config": _QUANTIZED,
    "load_in_8bit": f"{_QUANTIZED} (RewardBench: --not_quantized)",
    "load_in_4bit": _QUANTIZED,
    "attn_implementation": "packed tokens run only on PyTorch's SDPA; leave it out",
    "num_labels": "a reward model has one label",
}
_QUANTIZATIONS = ("none", "8bit", "4bit")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Fields that loading itself, or `AutoModelForSequenceClassification`, sets in the configuration.
_NOT_COMPARED = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "pad_token_id"}


def prepare_kernels(deterministic: bool = False) -> None:
    """Limit the kernel memory of this process and its children, unless the user does; call it before the first pass.

    oneDNN keeps 1024 kernels by default, one for each shape of a matrix product. Shapes depend on a pass's texts, so
    kernels are reused only within a pass, and 16 are enough.

    Args:
        deterministic: prepare CUDA for deterministic matrix products too.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, "16")  # read at the first matrix product in bf16
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts


@dataclass(frozen=True)
class LoadOptions:
    """The checked options of `from_pretrained`.

    Attributes:
        dtype: precision of trunk and branches; default: as saved.
        device: the device of the whole model; default: the CPU.
        quantization: `8bit` or `4bit` to hold frozen linear layers in 8 or 4 bits.
        check: compare the files with SHA256SUMS, if the folder has it.
        hub: `revision`, `token` and the like; see `hub.download`.
        config: the configuration that `AutoModelForSequenceClassification` read, with the caller's changes.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    quantization: str = "none"
    check: bool = True
    hub: Mapping[str, Any] = field(default_factory=dict)
    config: DMoERMConfig | None = None

    def check_config(self, folder: Path) -> None:
        """Raise `ConfigError` if the caller's configuration differs from the folder's; it would have no effect."""
        if self.config is None:
            return
        stored, given = DMoERMConfig.from_pretrained(folder).to_dict(), self.config.to_dict()
        names = sorted(name for name in stored.keys() | given.keys() if stored.get(name) != given.get(name))
        if changed := [name for name in names if name not in _NOT_COMPARED]:
            raise ConfigError(
                f"from_pretrained: {', '.join(changed)}: cannot be changed on loading; edit {folder / 'config.json'}, "
                "or the loaded model's `config`"
            )


def load_options(options: Mapping[str, Any]) -> LoadOptions:
    """Check the keyword arguments of `from_pretrained`. Raise one `ConfigError` that names all unsupported ones."""
    options = {name: value for name, value in options.items() if value is not None}
    config = options.get("config")
    given = {name: value for name, value in options.items() if name not in _FROM_AUTO}
    if attention := getattr(config, "_attn_implementation", None):  # `AutoConfig` moves it there
        given["attn_implementation"] = attention
    problems = [problem for name, value in given.items() if (problem := _problem(name, value))]
    dtype = device = None
    try:
        dtypes = {as_dtype(given[name]) for name in ("dtype", "torch_dtype") if name in given} - {None}
        if len(dtypes) > 1:
            raise ConfigError("give only dtype, not torch_dtype too: they differ")
        # the auto classes pass the precision on in the configuration only
        dtype = next(iter(dtypes), None) or as_dtype(getattr(config, "dtype", None))
        device = _device(given.get("device_map"))
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(f"from_pretrained: {'; '.join(problems)}")
    hub = {name: given[name] for name in _HUB if name in given}
    return LoadOptions(dtype, device, given.get("quantization", "none"), bool(given.get("check", True)), hub, config)


def _problem(name: str, value: Any) -> str | None:
    """Return why an option is refused, or None if it is supported. False and "" request nothing."""
    if name == "quantization" and value not in _QUANTIZATIONS:
        return f"quantization={shorten(value)} is not supported: use {' or '.join(_QUANTIZATIONS)}"
    if name in _SUPPORTED or (name in _ALWAYS and isinstance(value, str | int) and value in _ALWAYS[name]):
        return None
    if name not in _ALWAYS and (value is False or value == ""):
        return None
    reason = _REASONS.get(name, f"the options are {', '.join(_SUPPORTED)}")
    return f"{name}={' '.join(shorten(value).split())} is not supported: {reason}"


def as_dtype(value: Any) -> torch.dtype | None:
    """Convert a dtype or its name; None and "auto" give None. Raise `ConfigError` if the dtype is not supported."""
    if value is None or value == "auto":
        return None
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if dtype not in _DTYPES:
        known = ", ".join(str(each).removeprefix("torch.") for each in _DTYPES)
        raise ConfigError(f"dtype={shorten(value)} is not supported: use {known} or auto")
    return dtype


def default_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device(value: Any) -> torch.device | None:
    """Return the one device that `device_map` names; "auto" is the default device."""
    if value is None:
        return None
    if value == "auto":
        return default_device()
    name: Any = value[""] if isinstance(value, dict) and list(value) == [""] else value
    hint = 'a model is on one device: use "auto", "cpu", "cuda:0" or the like'
    try:
        device = torch.device("cuda", name) if isinstance(name, int) else torch.device(name)
    except (TypeError, RuntimeError):
        raise ConfigError(f"device_map={shorten(value)} is not supported: {hint}") from None
    if device.type == "meta":
        raise ConfigError(f"device_map={shorten(value)} is not available here: {hint}")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"device_map={shorten(value)} is not available here: PyTorch finds {count} GPUs")
    return device


def quantize(parts: Sequence[Decoder | None], kind: str, device: torch.device) -> None:
    """Replace the layers of trunk and branch by quantized ones on the device; embeddings and norm stay.

    Experts are attached afterward, since they share the layers.

    Args:
        kind: `8bit` (LLM.int8, arXiv 2208.07339) or `4bit` (NF4, arXiv 2305.14314).

    Raises:
        ConfigError: bitsandbytes is not installed, or does not support the device.
    """
    # no skipped layer: a part has no vocabulary head
    options: dict[str, Any] = {f"load_in_{kind}": True, "llm_int8_skip_modules": []}
    for part in parts:
        if part is None:
            continue
        if kind == "4bit":  # without double quantization, which would round the scales
            options |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": part.dtype}
        try:
            quantized = type(part).from_pretrained(
                None,
                config=part.config,
                state_dict=part.state_dict(),
                quantization_config=BitsAndBytesConfig(**options),
                device_map={"": device},
                attn_implementation=ATTENTION,
                dtype=part.dtype,
            )
        except (ImportError, RuntimeError, ValueError) as error:
            hint = "pip install '.[quantization]' in dmoerm's folder"
            raise ConfigError(f"quantization: {kind} is not possible here: {error}; {hint}") from None
        part.layers = quantized.layers


def dense_state(part: nn.Module) -> dict[str, Tensor]:
    """Return the state of a part of the model with decoded weights in place of quantized ones."""
    state = part.state_dict()
    for name, module in part.named_modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ in ("Params4bit", "Int8Params"):
            for key in [key for key in state if key.startswith(f"{name}.") and key != f"{name}.bias"]:
                del state[key]
            decoded = bitsandbytes.dequantize_bnb_weight(weight, getattr(module, "state", None))
            state[f"{name}.weight"] = decoded.to(part.dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return state
