"""The options of `from_pretrained`: precision, device, quantization, backbone, hub; others are refused by name.

Callers such as RewardBench and TRL pass transformers' options on. An option has its effect, requests what a DMoERM
always does, or raises a `ConfigError`; none is ignored.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.integrations import bitsandbytes

from ..errors import BackboneError, CheckpointError, ConfigError, shorten
from .attention import ATTENTION
from .backbone import BUNDLED, GGUF, load_layers
from .configuration import BackboneSource, DMoERMConfig
from .layers import Decoder, split_layers
from .mixture import Mixture

_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_SUPPORTED = ("dtype", "torch_dtype", "device_map", "quantization", "backbone", "check", *_HUB)
BACKBONE_VARIABLE = "DMOERM_BACKBONE"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
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


def prepare_process(deterministic: bool = False) -> None:
    """Set up the kernels and the memory of this process, unless the user does; call it before the first pass.

    oneDNN keeps 1024 kernels by default, one for each shape of a matrix product. Shapes depend on a pass's texts, so
    kernels are reused only within a pass, and 16 are enough. `deterministic` prepares CUDA for deterministic matrix
    products too.

    glibc returns the memory of each layer's states to the system, and the next layer gets it back page by page, which
    takes up to a fifth of a pass of 2,500 tokens. Here it keeps up to 512 MiB.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, "16")  # read at the first matrix product in bf16
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:  # other C libraries have none
            mallopt(_M_TRIM_THRESHOLD, 2**29)
            mallopt(_M_MMAP_THRESHOLD, 2**28)


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


# --- the backbone ----------------------------------------------------------------------------------------------------

TRUNK, GENERAL = "trunk.safetensors", "general/branch.safetensors"
States = Mapping[str, Mapping[str, Tensor]]
"""The name of a file of the checkpoint → the state of its part."""

_BACKBONE_HINT = "name its backbone with --backbone PATH (in Python backbone=PATH, elsewhere $DMOERM_BACKBONE)"


def name_backbone(model: Mixture, name: str) -> None:
    """Let checkpoints of a model name its backbone, if training leaves a part of it as it is.

    `name` is `backbone.path`, from which the model has its weights.
    """
    if parts := pretrained_parts(model):
        digest = state_digest(*(part.state_dict() for part in parts.values()))
        model.config.backbone_source = _described(name, digest)


def pretrained_parts(model: Mixture) -> dict[str, nn.Module]:
    """Return file name → part, of the parts that training leaves as the backbone has them."""
    parts = {TRUNK: model.trunk, GENERAL: model.general.branch if model.config.shared_branch else None}
    return {name: part for name, part in parts.items() if part is not None}


def is_unchanged(model: Mixture) -> bool:
    """Return whether the pretrained parts have the weights of the named backbone."""
    source = model.config.backbone_source
    states = (part.state_dict() for part in pretrained_parts(model).values())
    return source is not None and state_digest(*states) == source["digest"]


def read_backbone(folder: Path, config: DMoERMConfig, name: str, hub: Mapping[str, Any]) -> States:
    """Return the pretrained parts of a checkpoint's model, with the weights of a backbone.

    Args:
        folder: the checkpoint's.
        config: names the backbone; if that was a folder, it names `name` from now on, where that folder may have moved.
        name: of the backbone in use, as `backbone.path`.
        hub: see `checkpoint.download`.

    Raises:
        CheckpointError: there is no such backbone, or it has fewer layers.
    """
    source: Any = config.backbone_source
    options = {option: hub[option] for option in ("token", "cache_dir", "local_files_only") if option in hub}
    if name == source["name"] and source["revision"]:
        options["revision"] = source["revision"]
    layers, dtype = config.backbone["num_hidden_layers"], getattr(torch, config.backbone["dtype"])
    try:
        trunk, branch = split_layers(load_layers(name, layers, dtype, **options), config.branch_layer)
    except BackboneError as error:
        raise CheckpointError(f"{folder}: {error}; {_BACKBONE_HINT}") from None
    if os.path.isabs(source["name"]):
        config.backbone_source = _described(name, source["digest"])
    parts = {TRUNK: trunk, GENERAL: branch if config.shared_branch else None}
    return {file: part.state_dict() for file, part in parts.items() if part is not None}


def check_digest(folder: Path, name: str, expected: str, pretrained: States) -> None:
    """Raise `CheckpointError` if the backbone of that name has other weights than in training."""
    if (actual := state_digest(*pretrained.values())) != expected:
        digests = f"digest {expected[:16]}, not {actual[:16]}"
        raise CheckpointError(
            f"{folder}: was trained on a backbone with other weights than {name!r} ({digests}); {_BACKBONE_HINT}"
        )


def state_digest(*states: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all tensors with their names, dtypes and shapes; threads share the work."""

    def line(named: tuple[str, Tensor]) -> str:
        name, tensor = named
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        return f"{hashlib.sha256(content).hexdigest()} {name} {tensor.dtype} {tuple(tensor.shape)}\n"

    with ThreadPoolExecutor() as pool:
        lines = pool.map(line, (named for state in states for named in sorted(state.items())))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _described(name: str, digest: str) -> dict[str, Any]:
    """Return the fields of a `BackboneSource`: a path is absolute, a name on the hub has its commit."""
    revision = None
    if name != BUNDLED and (os.path.isdir(name) or name.endswith(GGUF)):
        name = os.path.abspath(name)
    elif isinstance(file := try_to_load_from_cache(name, "config.json"), str):
        revision = Path(file).parent.name
    return BackboneSource(name=name, revision=revision, digest=digest).model_dump()
