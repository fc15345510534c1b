"""A model's folder: written completely or not at all, read without ever unpickling anything.

config.json  README.md  run.yaml  tokenizer files
SHA256SUMS                                   of all files but README.md and run.yaml
training_prompts.txt                         digests of the prompts of the training part (see training_prompts.py)
model.safetensors                            router, heads, aggregators, calibration
trunk.safetensors                            the shared layers (none with branch_layer 0)
router/language_model.safetensors            where the router has its own
general/branch.safetensors                   the general model's branch
tasks/<task>/branch.safetensors              a task's branch (none where all share the general one)
tasks/<task>/experts/<capability>/           a PEFT adapter: adapter_config.json, adapter_model.safetensors

<task> and <capability> are folder names; see `dmoerm.names`.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..chat.encoding import Encoder, on_a_fixed_day
from ..config import EncodingConfig, LoRAConfig
from ..errors import CheckpointError, shorten
from ..io.paths import complete_folder
from ..names import folder_name
from .backbone import join, load_tokenizer
from .config_file import read_config
from .experts import Experts, lora_layers
from .hub import download
from .integrity import TEXTS, check_files, read_tensors, sums_checked, write_sums
from .loading import LoadOptions, as_dtype
from .packed_attention import Decoder
from .training_prompts import TrainingPrompts

if TYPE_CHECKING:
    from .dmoerm import DMoERM

_ADAPTER = "base_model.model."


def save(
    model: DMoERM,
    target: Path,
    *,
    card: str | None = None,
    run_config: str | None = None,
    dtype: torch.dtype | str | None = None,
) -> None:
    """Writes the model's folder. If it fails, `target` is as it was before.

    Args:
        card: the text of README.md; run_config: the text of run.yaml; None: what the model was loaded with, if any.
        dtype: dtype of trunk, branches and the router's language model; None: as in memory, where trained weights are
            float32. `bfloat16` halves the branches' files and rounds small changes away (docs/training.md).

    Raises:
        CheckpointError: the folder cannot be written (a full disk, no rights).
    """
    try:
        with complete_folder(target) as folder:
            _write(model, folder, as_dtype(dtype))
            write_sums(folder)
            for name, text in {**model.texts, **_given({"README.md": card, "run.yaml": run_config})}.items():
                (folder / name).write_text(text, encoding="utf-8")
    except Exception as error:  # a full disk is an OSError, a SafetensorError or a bare Exception, by who writes
        raise CheckpointError(f"{target}: the model cannot be written: {error}; nothing was changed there") from error


def _given(texts: dict[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text is not None}


def _write(model: DMoERM, folder: Path, dtype: torch.dtype | None) -> None:
    model.config.architectures = [type(model).__name__]
    config = copy.deepcopy(model.config)
    config.backbone = _with_dtype(config.backbone, dtype)
    config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    if model.training_prompts is not None:
        model.training_prompts.write(folder)
    _save_tensors(small_state(model), folder / "model.safetensors")
    for path, part in _parts(model):
        _save_tensors({name: tensor.to(dtype) for name, tensor in part.state_dict().items()}, folder / path)
    for task, experts in _experts(model):
        for i, capability in enumerate(experts.capabilities):
            place = folder / _expert_path(task, capability)
            place.mkdir(parents=True)
            _adapter_config(experts, model.config.branch_layer).save_pretrained(str(place))
            _save_tensors(adapter_state(experts, i, model.config.branch_layer), place / "adapter_model.safetensors")


def load(path: str | Path, options: LoadOptions | None = None) -> DMoERM:
    """Read a model's folder, or download it from the hub.

    Raises:
        CheckpointError: no such model, a missing, truncated, changed or foreign file.
        ConfigError: the options hold a configuration that differs from the folder's.
    """
    options = options or LoadOptions()
    folder = _local(path, options.hub)
    check_files(folder)
    with sums_checked(folder) if options.check else contextlib.nullcontext():
        model = _read(folder, options.dtype)
        options.check_config(folder)
    model.config.name_or_path = str(path)  # where TRL looks for the tokenizer
    return model if options.device is None else model.to(options.device)  # pyright: ignore[reportArgumentType]


def _read(folder: Path, dtype: torch.dtype | None) -> DMoERM:
    model = _empty_model(folder)
    _fill(model, read_tensors(folder / "model.safetensors"), folder / "model.safetensors")
    for name, part in _parts(model):
        _fill(part, read_tensors(folder / name), folder / name)
    for task, experts in _experts(model):
        places = [folder / _expert_path(task, capability) for capability in experts.capabilities]
        states = [_adapter(experts, i, place, model.config.branch_layer) for i, place in enumerate(places)]
        experts.attach(model.task_model(task).base.branch)  # pyright: ignore[reportArgumentType]
        for i, state in enumerate(states):
            _fill_adapter(experts, i, state, model.config.branch_layer)
    if unread := [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]:
        raise CheckpointError(f"{folder}: has no value for {unread[0]}; this backbone is not supported")
    convert(model, dtype)
    try:
        tokenizer = load_tokenizer(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare exceptions of its own
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {str(error).splitlines()[0]}") from None
    model.training_prompts = TrainingPrompts.read(folder)
    model.texts = {
        name: file.read_text(encoding="utf-8", errors="replace") for name in TEXTS if (file := folder / name).is_file()
    }
    return with_tokenizer(model, tokenizer).eval()


def convert(model: DMoERM, dtype: torch.dtype | None) -> None:
    """Gives trunk, branches and the router's language model this dtype, trained weights too, and computes in it."""
    if dtype is None:
        return
    model.config.backbone = _with_dtype(model.config.backbone, dtype)
    for _, part in _parts(model):
        part.to(dtype)
    for part in model.modules():
        if part is not model and isinstance(part, PreTrainedModel):  # the experts' branches, too
            part.config.dtype = dtype


def _with_dtype(backbone: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    return backbone if dtype is None else {**backbone, "dtype": str(dtype).removeprefix("torch.")}


def with_tokenizer(model: DMoERM, tokenizer: Any) -> DMoERM:
    """The same model, ready to encode text; its tokenizer pads, and renders what the model reads on any day."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.init_kwargs.pop("local_files_only", None)  # how it was found; it would be saved as if it were a setting
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = on_a_fixed_day(tokenizer.chat_template)
    limit = model.config.backbone.get("max_position_embeddings")
    model.tokenizer, model.config.pad_token_id = tokenizer, tokenizer.pad_token_id
    model.encoder = Encoder(tokenizer, EncodingConfig(**model.config.encoding), limit)
    return model


def task_backbone(model: DMoERM, task: str) -> Decoder:
    """Trunk and the task's branch as one plain decoder: what PEFT loads the task's adapters onto."""
    return join(model.trunk, model.task_model(task).base.branch)  # pyright: ignore[reportArgumentType]


def small_state(model: nn.Module) -> dict[str, Tensor]:
    """The state without trunk, branches, adapters and language models: router, heads, aggregators, calibration."""
    large = ("trunk.", ".branch.", ".language_model.")
    return {name: t for name, t in model.state_dict().items() if not any(part in f".{name}" for part in large)}


def adapter_state(experts: Experts, index: int, first_layer: int) -> dict[str, Tensor]:
    """One expert's LoRA under PEFT's names, layers numbered as in the whole decoder."""
    state: dict[str, Tensor] = {}
    for name, layer in lora_layers(experts.branch or nn.Module()).items():
        prefix = _ADAPTER + _renumber(name, first_layer)
        state[f"{prefix}.lora_A.weight"] = layer.lora_A[index]
        state[f"{prefix}.lora_B.weight"] = layer.lora_B[index]
    return state


def _adapter_config(experts: Experts, first_layer: int) -> Any:
    from peft import LoraConfig, TaskType

    config: LoRAConfig = experts.config
    names = [_renumber(name, first_layer) for name in lora_layers(experts.branch or nn.Module())]
    written = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        task_type=TaskType.FEATURE_EXTRACTION,
        inference_mode=True,
    )
    written.target_modules = names  # given above, it would become a set, whose order differs between processes
    return written


def _renumber(name: str, first_layer: int) -> str:
    return re.sub(r"^layers\.(\d+)", lambda match: f"layers.{int(match[1]) + first_layer}", name)


def _parts(model: DMoERM) -> Iterator[tuple[str, nn.Module]]:
    if model.trunk is not None:
        yield "trunk.safetensors", model.trunk
    if model.router.language_model is not None:
        yield "router/language_model.safetensors", model.router.language_model
    yield "general/branch.safetensors", model.general.branch
    if not model.config.shared_branch:
        for task in model.config.tasks:
            yield f"tasks/{folder_name(task)}/branch.safetensors", model.task_model(task).base.branch


def _expert_path(task: str, capability: str) -> str:
    return f"tasks/{folder_name(task)}/experts/{folder_name(capability)}"


def _experts(model: DMoERM) -> Iterator[tuple[str, Experts]]:
    for task in model.config.tasks:
        if (experts := model.task_model(task).experts).branch is not None:
            yield task, experts


def _save_tensors(state: dict[str, Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, file, metadata={"format": "pt"})


def _local(path: str | Path, hub: Mapping[str, Any]) -> Path:
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or str(path).count("/") != 1:
        raise CheckpointError(f"{path}: is no dmoerm model (no config.json there); give the folder that `train` wrote")
    return download(str(path), **hub)


def _empty_model(folder: Path) -> DMoERM:
    """The model that config.json describes, without memory for its weights until they are read."""
    from .dmoerm import DMoERM

    config = read_config(folder)
    try:
        with torch.device("meta"):
            return DMoERM(config)
    except Exception as error:  # settings of a backbone that is none: transformers raises many kinds
        raise CheckpointError(f"{folder / 'config.json'}: describes no model: {shorten(str(error))}") from None


def current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under today's names; older files have `standardise` where the module is now `normalizer`."""
    return {re.sub(r"\bstandardise(?=\.)", "normalizer", name): tensor for name, tensor in state.items()}


def _fill(module: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    state = current_names(state)
    expected = small_state(module) if file.name == "model.safetensors" else module.state_dict()
    if wrong := sorted(set(expected) ^ set(state)):
        raise CheckpointError(f"{file}: its tensors do not fit config.json (first difference: {wrong[0]})")
    try:
        module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: does not fit config.json: {str(error).splitlines()[-1].strip()}") from None


def _adapter(experts: Experts, index: int, place: Path, first_layer: int) -> dict[str, Tensor]:
    file = place / "adapter_model.safetensors"
    state, expected = read_tensors(file), adapter_state(experts, index, first_layer)
    if {n: t.shape for n, t in expected.items()} != {n: t.shape for n, t in state.items()}:
        raise CheckpointError(f"{file}: its tensors do not fit config.json")
    return state


def _fill_adapter(experts: Experts, index: int, state: dict[str, Tensor], first_layer: int) -> None:
    with torch.no_grad():
        for name, tensor in adapter_state(experts, index, first_layer).items():
            tensor.copy_(state[name])
