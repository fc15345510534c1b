"""The checkpoint folder: written completely or not at all, and read without unpickling.

config.json  README.md  run.yaml  tokenizer files
SHA256SUMS                                   of all files except README.md and run.yaml
training_prompts.txt                         digests of the training part's prompts; see training_prompts.py
router/prompt_statistics.safetensors         means and covariances of prompts by task; see prompt_statistics.py
model.safetensors                            router, heads, aggregators, calibration, posteriors
trunk.safetensors                            the shared layers (absent with branch_layer 0)
router/language_model.safetensors            of a router with its own language model
general/branch.safetensors                   the general model's branch
tasks/<task>/branch.safetensors              a task's branch (absent if all share the general one)
tasks/<task>/experts/<capability>/           a PEFT adapter: adapter_config.json, adapter_model.safetensors

<task> and <capability> are folder names; see `dmoerm.names`. Older versions' tensor names are read too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..chat.encoding import Encoder
from ..chat.template import on_a_fixed_day
from ..config import EncodingConfig
from ..errors import CheckpointError, ConfigError, shorten
from ..io.paths import complete_folder, model_folder
from ..names import folder_name
from .adapters import fill_adapter, read_adapter, write_adapter
from .backbone import load_tokenizer
from .configuration import read_config, stored_config
from .experts import Experts
from .hub import download
from .integrity import TEXTS, check_files, read_tensors, sums_checked, write_sums, write_tensors
from .layers import join
from .loading import LoadOptions, as_dtype, dense_state, quantize
from .mixture import Mixture
from .packed_attention import Decoder
from .prompt_statistics import PromptStatistics
from .training_prompts import TrainingPrompts

ModelT = TypeVar("ModelT", bound=Mixture)


def save(
    model: Mixture,
    target: Path,
    *,
    card: str | None = None,
    run_config: str | None = None,
    dtype: torch.dtype | str | None = None,
) -> None:
    """Write the checkpoint folder. If writing fails, `target` is unchanged.

    Args:
        card: the text of README.md; None: the text that the model was loaded with, if any.
        run_config: the text of run.yaml; None: likewise.
        dtype: precision of trunk, branches and the router's language model; None: as in memory, where trained weights
            are float32. `bfloat16` halves the branches' files and rounds small changes away (docs/training.md).

    Raises:
        ConfigError: the dtype is not supported.
        CheckpointError: the folder cannot be written (disk full, no permission).
    """
    dtype = as_dtype(dtype)
    texts = {"README.md": card, "run.yaml": run_config}
    try:
        with complete_folder(target) as folder:
            _write(model, folder, dtype)
            write_sums(folder)
            for name, text in (model.texts | {name: text for name, text in texts.items() if text is not None}).items():
                (folder / name).write_text(text, encoding="utf-8")
    except Exception as error:  # on a full disk the libraries raise OSError, SafetensorError or a bare Exception
        raise CheckpointError(f"{target}: the model cannot be written: {error}; nothing was changed there") from error


def _write(model: Mixture, folder: Path, dtype: torch.dtype | None) -> None:
    model.config.architectures = [type(model).__name__]
    config = stored_config(model.config)
    config.backbone = _with_dtype(config.backbone, dtype)
    config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    if model.training_prompts is not None:
        model.training_prompts.write(folder)
    if model.prompt_statistics is not None:
        model.prompt_statistics.write(folder)
    write_tensors(small_state(model), folder / "model.safetensors")
    for path, part in _parts(model):
        write_tensors({name: tensor.to(dtype) for name, tensor in dense_state(part).items()}, folder / path)
    for task, experts in _experts(model):
        for i, capability in enumerate(experts.capabilities):
            write_adapter(experts, i, model.config.branch_layer, folder / _expert_path(task, capability))


def load(path: str | Path, model_class: type[ModelT], options: LoadOptions) -> ModelT:
    """Load the checkpoint in a run's folder or in a folder of its own, or download it from the hub.

    Args:
        model_class: the class of the returned model.

    Raises:
        CheckpointError: the model does not exist, or a file is missing, truncated, changed or foreign.
        ConfigError: the options contain a configuration that differs from the folder's.
    """
    path = model_folder(str(path))
    folder = local_folder(path, options.hub)
    check_files(folder)
    with sums_checked(folder) if options.check else contextlib.nullcontext():
        model = _read(folder, model_class, options)
        options.check_config(folder)
    model.config.name_or_path = path  # TRL loads the tokenizer from there
    return model if options.device is None else model.to(options.device)  # pyright: ignore


def _read(folder: Path, model_class: type[ModelT], options: LoadOptions) -> ModelT:
    model = _empty_model(folder, model_class)
    _fill(model, read_tensors(folder / "model.safetensors", aligned=True), folder / "model.safetensors")
    for name, part in _parts(model):
        if not name.startswith("tasks/"):
            _fill(part, read_tensors(folder / name), folder / name)
    if options.quantization != "none":
        _quantize(model, options)
    for task in model.config.tasks:
        _read_task(model, folder, task)
    values = (*model.named_parameters(), *model.named_buffers())
    if unread := [name for name, value in values if value.is_meta]:
        raise CheckpointError(f"{folder}: contains no value for {unread[0]}; this backbone is not supported")
    convert(model, options.dtype)
    try:
        tokenizer = load_tokenizer(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {str(error).splitlines()[0]}") from None
    model.training_prompts = TrainingPrompts.read(folder)
    width = model.router.classify.in_features
    model.prompt_statistics = PromptStatistics.read(folder, model.config.tasks, width)
    model.texts = {
        name: file.read_text(encoding="utf-8", errors="replace") for name in TEXTS if (file := folder / name).is_file()
    }
    return with_tokenizer(model, tokenizer).eval()


def _quantize(model: Mixture, options: LoadOptions) -> None:
    """Quantize the shared layers. LoRA layers, which share them, are attached afterward."""
    if not model.config.shared_branch or model.config.router_kind == "own":
        raise ConfigError(f"quantization: {options.quantization} needs frozen weights: a model of base: frozen")
    convert(model, options.dtype)
    parts = (model.trunk, model.general.branch)
    quantize(parts, options.quantization, options.device or torch.device("cpu"))  # pyright: ignore[reportArgumentType]


def _read_task(model: Mixture, folder: Path, task: str) -> None:
    """Read a task's branch, if it has its own, and the LoRA of its experts."""
    task_model = model.task_model(task)
    experts, branch = task_model.experts, task_model.base.branch
    if not model.config.shared_branch:
        file = folder / _branch_file(task)
        _fill(branch, read_tensors(file), file)
    if experts.branch is None:
        return
    folders = [folder / _expert_path(task, c) for c in experts.capabilities]
    states = [read_adapter(experts, i, model.config.branch_layer, each) for i, each in enumerate(folders)]
    # only now, when the branch has its weights: the LoRA layers share them
    experts.attach(branch)  # pyright: ignore[reportArgumentType]
    for i, state in enumerate(states):
        fill_adapter(experts, i, model.config.branch_layer, state)


def convert(model: Mixture, dtype: torch.dtype | None) -> None:
    """Convert trunk, branches and the router's language model to a dtype, trained weights too, and compute in it."""
    if dtype is None:
        return
    model.config.backbone = _with_dtype(model.config.backbone, dtype)
    for _, part in _parts(model):
        part.to(dtype)
    for part in model.modules():
        if part is not model and isinstance(
            part, PreTrainedModel
        ):  # the experts' branches have configurations of their own
            part.config.dtype = dtype


def _with_dtype(backbone: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    return backbone if dtype is None else {**backbone, "dtype": str(dtype).removeprefix("torch.")}


def with_tokenizer(model: ModelT, tokenizer: Any) -> ModelT:
    """Give the model its tokenizer and encoder; the tokenizer gets a padding token and a template without a date."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.init_kwargs.pop("local_files_only", None)  # an option of loading, which would be saved as a setting
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = on_a_fixed_day(tokenizer.chat_template)
    model.tokenizer, model.config.pad_token_id = tokenizer, tokenizer.pad_token_id
    model.encoder = Encoder(tokenizer, EncodingConfig(**model.config.encoding), model.config.text_tokens)
    return model


def task_backbone(model: Mixture, task: str) -> Decoder:
    """Return trunk and the task's branch as one plain decoder, onto which PEFT loads the task's adapters."""
    return join(model.trunk, model.task_model(task).base.branch)  # pyright: ignore[reportArgumentType]


def small_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state without the large parts: no trunk, branches, LoRA or language model."""
    large = ("trunk.", ".branch.", ".language_model.")
    return {name: t for name, t in model.state_dict().items() if not any(part in f".{name}" for part in large)}


def _parts(model: Mixture) -> Iterator[tuple[str, nn.Module]]:
    if model.trunk is not None:
        yield "trunk.safetensors", model.trunk
    if model.router.language_model is not None:
        yield "router/language_model.safetensors", model.router.language_model
    yield "general/branch.safetensors", model.general.branch
    if not model.config.shared_branch:
        for task in model.config.tasks:
            yield _branch_file(task), model.task_model(task).base.branch


def _branch_file(task: str) -> str:
    return f"tasks/{folder_name(task)}/branch.safetensors"


def _expert_path(task: str, capability: str) -> str:
    return f"tasks/{folder_name(task)}/experts/{folder_name(capability)}"


def _experts(model: Mixture) -> Iterator[tuple[str, Experts]]:
    """Yield the tasks whose experts have LoRA."""
    for task in model.config.tasks:
        if (experts := model.task_model(task).experts).branch is not None:
            yield task, experts


def local_folder(path: str | Path, hub: Mapping[str, Any]) -> Path:
    """Return a checkpoint's folder, after a download if the path is a hub name.

    Args:
        hub: options of `hub.download`.

    Raises:
        CheckpointError: there is no such model.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{path}: is not a dmoerm model (it has no config.json); give the folder that `train` wrote"
        )
    if str(path).count("/") != 1:
        hint = "give the folder that `train` wrote, or a name on the hub such as me/model"
        raise CheckpointError(f"{path}: there is no such folder; {hint}")
    return download(str(path), **hub)


def _empty_model(folder: Path, model_class: type[ModelT]) -> ModelT:
    """Build the model that config.json describes, on the meta device: weights take no memory until they are read."""
    config = read_config(folder)
    try:
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:  # transformers raises many kinds for invalid backbone settings
        raise CheckpointError(
            f"{folder / 'config.json'}: is not a valid configuration: {shorten(str(error))}"
        ) from None


def _fill(module: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    expected = small_state(module) if file.name == "model.safetensors" else module.state_dict()
    if wrong := sorted(set(expected) ^ set(state)):
        raise CheckpointError(f"{file}: its tensors do not fit config.json (first difference: {wrong[0]})")
    try:
        module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: does not fit config.json: {str(error).splitlines()[-1].strip()}") from None
