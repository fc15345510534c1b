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
_SUPPORTED = ("dtype", "torch_dtype", "device_map", "quantization", "backbone", "check", *_HUB)
BACKBONE_VARIABLE = "DMOERM_BACKBONE"
_FROM_AUTO = ("adapter_kwargs", "config", "_from_auto", "_from_pipeline", "_commit_hash")  # transformers adds them
# Options with the values that we accept.
_FIXED: dict[str, tuple[Any, ...]] = {
    "quantization": ("none", "8bit", "4bit"),
    "trust_remote_code": (True, False),  # a checkpoint contains no code
    "use_safetensors": (True,),
    "weights_only": (True,),
    "low_cpu_mem_usage": (True, False),
    "num_labels": (1,),
    "attn_implementation": ("sdpa", "dmoerm_packed"),
}
_QUANTIZED = 'use quantization="8bit" or "4bit"; dtype=torch.bfloat16 halves the memory'
_REASONS = {
    "quantization": "use none or 8bit or 4bit",
    "quantization_config": _QUANTIZED,
    "load_in_8bit": f"{_QUANTIZED} (RewardBench: --not_quantized)",
    "load_in_4bit": _QUANTIZED,
    "attn_implementation": "packed tokens run only on PyTorch's SDPA; leave it out",
    "num_labels": "a reward model has one label",
}
_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
# Fields that loading itself, or `AutoModelForSequenceClassification`, sets in the configuration.
_NOT_COMPARED = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "pad_token_id"}


def prepare_kernels(deterministic: bool = False) -> None:
    """Limit the kernel memory of this process and its children, unless the user does; call it before the first pass.

    oneDNN keeps 1024 kernels by default, one for each shape of a matrix product. Shapes depend on a pass's texts, so
    kernels are reused only within a pass, and 16 are enough. `deterministic` prepares CUDA for deterministic matrix
    products too.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, "16")  # read at the first matrix product in bf16
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts


@dataclass(frozen=True)
class LoadOptions:
    """The checked options of `from_pretrained`."""

    dtype: torch.dtype | None = None  # precision of trunk and branches; default: as saved
    device: torch.device | None = None  # of the whole model; default: the CPU
    quantization: str = "none"  # `8bit` or `4bit` hold frozen linear layers in 8 or 4 bits
    backbone: str | None = None  # where the backbone is; default: where the checkpoint names it
    check: bool = True  # compare the files with SHA256SUMS, if the folder has it, and the backbone with its digest
    hub: Mapping[str, Any] = field(default_factory=dict)  # see `checkpoint.download`
    config: DMoERMConfig | None = None  # what the auto class read, with the caller's changes

    def check_config(self, folder: Path) -> None:
        """Raise `ConfigError` if the caller's configuration differs from the folder's; it would have no effect."""
        if self.config is None:
            return
        stored, given = DMoERMConfig.from_pretrained(folder).to_dict(), self.config.to_dict()
        names = sorted((stored.keys() | given.keys()) - _NOT_COMPARED)
        if changed := [name for name in names if stored.get(name) != given.get(name)]:
            raise ConfigError(
                f"from_pretrained: {', '.join(changed)}: cannot be changed on loading; edit {folder / 'config.json'}, "
                "or the loaded model's `config`"
            )


def load_options(options: Mapping[str, Any]) -> LoadOptions:
    """Check the keyword arguments of `from_pretrained`. Raise one `ConfigError` that names all unsupported ones."""
    config = options.get("config")
    given = {name: value for name, value in options.items() if value is not None and name not in _FROM_AUTO}
    if attention := getattr(config, "_attn_implementation", None):  # `AutoConfig` moves it there
        given["attn_implementation"] = attention
    problems = []
    for name, value in given.items():
        accepted = _FIXED.get(name, (False, ""))  # False and "" request nothing
        if (name in _SUPPORTED and name not in _FIXED) or (isinstance(value, str | int) and value in accepted):
            continue
        reason = _REASONS.get(name, f"the options are {', '.join(_SUPPORTED)}")
        problems.append(f"{name}={' '.join(shorten(value).split())} is not supported: {reason}")
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
    return LoadOptions(
        dtype,
        device,
        given.get("quantization", "none"),
        str(given.get("backbone") or os.environ.get(BACKBONE_VARIABLE) or "") or None,
        bool(given.get("check", True)),
        hub,
        config,
    )


def as_dtype(value: Any) -> torch.dtype | None:
    """Convert a dtype or its name; None and "auto" give None. Raise `ConfigError` if the dtype is not supported."""
    if value is None or value == "auto":
        return None
    if (name := str(value).removeprefix("torch.")) not in _DTYPES:
        raise ConfigError(f"dtype={shorten(value)} is not supported: use {', '.join(_DTYPES)} or auto")
    return _DTYPES[name]


def default_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device(value: Any) -> torch.device | None:
    """Return the one device that `device_map` names; "auto" is the default device."""
    if value is None or value == "auto":
        return default_device() if value else None
    name: Any = value[""] if isinstance(value, dict) and list(value) == [""] else value
    reason = 'a model is on one device: use "auto", "cpu", "cuda:0" or the like'
    try:
        device = torch.device("cuda", name) if isinstance(name, int) else torch.device(name)
    except (TypeError, RuntimeError):
        raise ConfigError(f"device_map={shorten(value)} is not supported: {reason}") from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        reason = f"PyTorch finds {count} GPUs"
    elif device.type != "meta":
        return device
    raise ConfigError(f"device_map={shorten(value)} is not available here: {reason}")


def quantize(parts: Sequence[Decoder | None], kind: str, device: torch.device) -> None:
    """Replace the layers of trunk and branch by quantized ones on the device; embeddings and norm stay.

    Experts are attached afterward, since they share the layers. `kind` is `8bit` (LLM.int8, arXiv 2208.07339) or `4bit`
    (NF4, arXiv 2305.14314).

    Raises:
        ConfigError: bitsandbytes is not installed, or does not support the device.
    """
    for part in filter(None, parts):
        # no skipped layer: a part has no vocabulary head
        options: dict[str, Any] = {f"load_in_{kind}": True, "llm_int8_skip_modules": []}
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
