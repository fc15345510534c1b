"""The options of `from_pretrained`: precision, device, hub, and those that a DMoERM refuses.

Callers such as RewardBench and TRL pass transformers' options on. Each option has its effect, requests what a DMoERM
always does, or is named in one `ConfigError`; none is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, shorten
from .configuration import DMoERMConfig

_KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_CACHED_KERNELS = "16"
"""oneDNN keeps a kernel for each shape of a matrix product, 1024 by default. The shapes of a pass
depend on its texts, so that kernels are reused among the layers of a pass only, and these need few."""
_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")
# Options with the values that request what a DMoERM always does; every other value is refused.
_ALWAYS: dict[str, tuple[Any, ...]] = {
    "trust_remote_code": (True, False),  # a checkpoint contains no code
    "use_safetensors": (True,),
    "weights_only": (True,),
    "low_cpu_mem_usage": (True, False),
    "num_labels": (1,),
    "attn_implementation": ("sdpa", "dmoerm_packed"),
}
_QUANTIZED = 'quantized weights are requested by quantization="8bit" or "4bit"; dtype=torch.bfloat16 halves the memory'
_REASONS = {
    "quantization_config": _QUANTIZED,
    "load_in_8bit": f"{_QUANTIZED} (RewardBench: --not_quantized)",
    "load_in_4bit": _QUANTIZED,
    "attn_implementation": "packed tokens run only on PyTorch's SDPA; leave it out",
    "num_labels": "a reward model has one label",
}
# Options of transformers that request nothing if they are None or False.
_OFF = (
    *("quantization_config", "load_in_8bit", "load_in_4bit", "output_loading_info", "ignore_mismatched_sizes"),
    *("state_dict", "variant", "subfolder", "proxies", "gguf_file", "max_memory", "offload_folder", "tp_plan"),
    *("key_mapping", "use_kernels", "code_revision", "experts_implementation"),
)
_SUPPORTED = ("dtype", "torch_dtype", "device_map", "quantization", "max_tasks", "check", *_HUB)
_QUANTIZATIONS = ("none", "8bit", "4bit")
_FROM_AUTO = (
    "adapter_kwargs",
    "config",
    "_from_auto",
    "_from_pipeline",
    "_commit_hash",
)  # added by transformers' auto classes
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Fields that loading itself, or `AutoModelForSequenceClassification`, sets in the configuration.
_NOT_COMPARED = {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "pad_token_id"}


def prepare_kernels(deterministic: bool = False) -> None:
    """Bound the memory of this process's kernels, unless the user has; before its first pass, and for its children.

    Args:
        deterministic: prepare CUDA for deterministic matrix products too.
    """
    for variable in _KERNEL_CACHES:
        os.environ.setdefault(variable, _CACHED_KERNELS)  # read at the first matrix product in bf16
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts


@dataclass(frozen=True)
class LoadOptions:
    """The options of `from_pretrained`, checked.

    Attributes:
        dtype: precision of trunk and branches; None: as saved.
        device: the device of the whole model; None: the CPU.
        quantization: `8bit` or `4bit` to hold frozen linear layers in 8 or 4 bits; see quantization.py.
        max_tasks: maximum number of tasks whose branch and experts are in memory; see task_weights.py. None: all.
        check: compare the files with their checksums, if the folder has a file of them.
        hub: `revision`, `token` and the like; see `hub.download`.
        config: the configuration that `AutoModelForSequenceClassification` read, with the caller's changes.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    quantization: str = "none"
    max_tasks: int | None = None
    check: bool = True
    hub: Mapping[str, Any] = field(default_factory=dict)
    config: DMoERMConfig | None = None

    def check_config(self, folder: Path) -> None:
        """Raise `ConfigError` if the caller's configuration, which has no effect, differs from the folder's."""
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
    attention = getattr(config, "_attn_implementation", None)  # `AutoConfig` moves it there
    given = {name: value for name, value in options.items() if name not in _FROM_AUTO}
    given |= {"attn_implementation": attention} if attention else {}
    problems = [problem for name, value in given.items() if (problem := _problem(name, value))]
    dtype = device = None
    try:
        # the auto classes of transformers 5.5 pass the precision on in the configuration only
        dtype = _dtype(given.get("dtype"), given.get("torch_dtype")) or as_dtype(getattr(config, "dtype", None))
        device = _device(given.get("device_map"))
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(f"from_pretrained: {'; '.join(problems)}")
    hub = {name: given[name] for name in _HUB if name in given}
    quantization = given.get("quantization", "none")
    return LoadOptions(dtype, device, quantization, given.get("max_tasks"), bool(given.get("check", True)), hub, config)


def _problem(name: str, value: Any) -> str | None:
    """Return why an option is refused, or None if it is supported."""
    if name == "quantization" and value not in _QUANTIZATIONS:
        return f"quantization={shorten(value)} is not supported: use {' or '.join(_QUANTIZATIONS)}"
    if name == "max_tasks" and (type(value) is not int or value < 1):
        return f"max_tasks={shorten(value)} is not supported: use a number from 1 on"
    if name in _SUPPORTED or (name in _OFF and value in (False, "")):
        return None
    if name in _ALWAYS and isinstance(value, str | int) and value in _ALWAYS[name]:
        return None
    if name in _OFF or name in _ALWAYS:
        reason = f": {_REASONS[name]}" if name in _REASONS else ""
        return f"{name}={' '.join(shorten(value).split())} is not supported{reason}"
    return f"{name} is unknown (known: {', '.join(_SUPPORTED)})"


def _dtype(*given: Any) -> torch.dtype | None:
    """Return the precision given as `dtype` or under its old name `torch_dtype`."""
    dtypes = {as_dtype(value) for value in given if value is not None}
    if len(dtypes) > 1:
        raise ConfigError(f"dtype={given[0]} and torch_dtype={given[1]} differ; give only dtype")
    return next(iter(dtypes), None)


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
        cause = "this PyTorch is built without support for GPUs"
        if torch.backends.cuda.is_built():
            cause = f"PyTorch finds {count or 'no'} GPU{'s' * (count > 1)}"
        raise ConfigError(f"device_map={shorten(value)} is not available here: {cause}")
    return device
