"""The checkpoint folder: saved completely or not at all, loaded without unpickling, shared on the Hugging Face hub.

A checkpoint contains what was trained, and names its backbone, whose weights are loaded from there. A self-contained
one (`save(…, backbone=True)`) also has the files that are marked with *.

config.json  README.md  run.yaml  tokenizer files
SHA256SUMS                                   of all files except README.md and run.yaml
training_prompts.txt                         digests of the training part's prompts; see training_prompts.py
router/prompt_statistics.safetensors         means and covariances of prompts by task; see training_prompts.py
model.safetensors                            router, heads, aggregators, calibration, posteriors
trunk.safetensors *                          the shared layers (absent with branch_layer 0)
router/language_model.safetensors            of a router with its own language model
general/branch.safetensors *                 the general model's branch (without *, unless all tasks share it)
tasks/<task>/branch.safetensors              a task's branch (absent if all share the general one)
tasks/<task>/experts/<capability>/           a PEFT adapter: adapter_config.json, adapter_model.safetensors

<task> and <capability> are folder names; see `folder_name`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..chat.encoding import Encoder
from ..chat.template import on_a_fixed_day
from ..config import AggregatorConfig, EncodingConfig, LoRAConfig
from ..errors import CheckpointError, ConfigError, shorten
from ..io.paths import complete_folder, model_folder
from ..names import folder_name
from .backbone import load_tokenizer
from .configuration import DMoERMConfig, read_config, stored_config
from .experts import read_adapter, write_adapter
from .integrity import FILES, SUMS, TEXTS, check_files, check_sums, checked, read_tensors, write_sums, write_tensors
from .layers import Decoder, join
from .loading import (
    GENERAL,
    TRUNK,
    LoadOptions,
    States,
    as_dtype,
    check_digest,
    dense_state,
    is_unchanged,
    pretrained_parts,
    quantize,
    read_backbone,
    state_digest,
)
from .mixture import Mixture
from .training_prompts import PROMPTS_FILE, PromptStatistics, TrainingPrompts

ModelT = TypeVar("ModelT", bound=Mixture)
_NAMES_IN_CARD = re.compile(r'(?<=dmoerm\.DMoERM\.from_pretrained\(")[^"]+|(?<=dmoerm serve )\S+')
_FOLDER_HINT = "give the folder that `train` wrote"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def save(
    model: Mixture,
    target: Path,
    *,
    card: str | None = None,
    run_config: str | None = None,
    dtype: torch.dtype | str | None = None,
    backbone: bool = False,
) -> None:
    """Write the checkpoint folder. If writing fails, `target` is unchanged.

    Args:
        card, run_config: the texts of README.md and run.yaml; default: those that the model was loaded with, if any.
        dtype: precision of trunk, branches and the router's language model; default: as in memory, where trained
            weights are float32. `bfloat16` halves the branches' files and rounds small changes away (docs/training.md).
        backbone: write the backbone's weights too. They are also written if the model was loaded from such a folder,
            and if they differ from those of the backbone that the model names, as decoded or rounded weights do.

    Raises:
        ConfigError: the dtype is not supported.
        CheckpointError: the folder cannot be written (disk full, no permission).
    """
    dtype = as_dtype(dtype)
    given = {"README.md": card, "run.yaml": run_config}
    texts = model.texts | {name: text for name, text in given.items() if text is not None}
    try:
        with complete_folder(target) as folder:
            model.config.architectures = [type(model).__name__]
            config = stored_config(model.config)
            if dtype is not None:
                config.backbone = config.backbone | {"dtype": str(dtype).removeprefix("torch.")}
            if backbone or config.backbone != model.config.backbone or not is_unchanged(model):
                config.backbone_source = None
            config.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
            for record in (model.training_prompts, model.prompt_statistics):
                if record is not None:
                    record.write(folder)
            write_tensors(small_state(model), folder / "model.safetensors")
            for path, part in _parts(model):
                if config.backbone_source is None or path not in pretrained_parts(model):
                    state = {name: tensor.to(dtype) for name, tensor in dense_state(part).items()}
                    write_tensors(state, folder / path)
            for task in model.config.tasks:
                experts = model.task_model(task).experts
                for i, capability in enumerate(experts.capabilities if experts.branch is not None else ()):
                    write_adapter(experts, i, model.config.branch_layer, folder / _expert_path(task, capability))
            write_sums(folder)
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
    except Exception as error:  # on a full disk the libraries raise OSError, SafetensorError or a bare Exception
        raise CheckpointError(f"{target}: the model cannot be written: {error}; nothing was changed there") from error


def load(path: str | Path, model_class: type[ModelT], options: LoadOptions) -> ModelT:
    """Load the checkpoint in a run's folder or in a folder of its own, or download it from the hub.

    Raises:
        CheckpointError: the model or its backbone does not exist, a file is missing, truncated, changed or foreign, or
            the backbone has other weights than in training.
        ConfigError: the options contain a configuration that differs from the folder's.
    """
    path = model_folder(str(path))
    folder = local_folder(path, options.hub)
    check_files(folder)
    with contextlib.ExitStack() as checks:
        if options.check:
            checks.enter_context(checked(lambda: check_sums(folder)))
        config = read_config(folder)
        backbone, pretrained = options.backbone, {}
        if (source := config.backbone_source) is not None:
            backbone = backbone or source["name"]
            pretrained = read_backbone(folder, config, backbone, options.hub)
            if options.check:
                checks.enter_context(checked(lambda: check_digest(folder, backbone, source["digest"], pretrained)))
        model = _read(folder, config, pretrained, model_class, options)
        options.check_config(folder)
    model.config.name_or_path = path  # TRL loads the tokenizer from there
    model.backbone_name = backbone
    return model if options.device is None else model.to(options.device)  # pyright: ignore


def _read(
    folder: Path,
    config: DMoERMConfig,
    pretrained: States,
    model_class: type[ModelT],
    options: LoadOptions,
) -> ModelT:
    try:
        with torch.device("meta"):  # weights take no memory until they are read
            model = model_class(config)
    except Exception as error:  # transformers raises many kinds for invalid backbone settings
        reason = f"is not a valid configuration: {shorten(str(error))}"
        raise CheckpointError(f"{folder / 'config.json'}: {reason}") from None
    file = folder / "model.safetensors"
    _fill(model, read_tensors(file, aligned=True), file, small=True)
    for name, part in _parts(model):
        if name in pretrained:
            _fill(part, pretrained[name], f"{folder}: the backbone")
        else:
            _fill(part, read_tensors(folder / name), folder / name)
    if options.quantization != "none":
        if not config.shared_branch or config.router_kind == "own":
            raise ConfigError(f"quantization: {options.quantization} needs frozen weights: a model of base: frozen")
        _convert(model, options.dtype)
        quantized: Any = (model.trunk, model.general.branch)
        quantize(quantized, options.quantization, options.device or torch.device("cpu"))
        config.backbone_source = None  # decoded weights are not the backbone's
    for task in config.tasks:
        if (experts := model.task_model(task).experts).branch is not None:
            # only now, when the branch has its final weights, which the LoRA layers share
            experts.attach(model.task_model(task).base.branch)  # pyright: ignore[reportArgumentType]
            for i, capability in enumerate(experts.capabilities):
                read_adapter(experts, i, config.branch_layer, folder / _expert_path(task, capability))
    values = (*model.named_parameters(), *model.named_buffers())
    if unread := [name for name, value in values if value.is_meta]:
        raise CheckpointError(f"{folder}: contains no value for {unread[0]}; this backbone is not supported")
    _convert(model, options.dtype)
    try:
        tokenizer = load_tokenizer(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {str(error).splitlines()[0]}") from None
    model.training_prompts = TrainingPrompts.read(folder)
    model.prompt_statistics = PromptStatistics.read(folder, config.tasks, model.router.classify.in_features)
    files = {name: folder / name for name in TEXTS}
    model.texts = {n: file.read_text(encoding="utf-8", errors="replace") for n, file in files.items() if file.is_file()}
    return with_tokenizer(model, tokenizer).eval()


def _fill(module: nn.Module, state: Mapping[str, Tensor], source: Path | str, *, small: bool = False) -> None:
    """Set a module's weights to the state of a source; `small`: all but the large parts, see `small_state`."""
    expected = small_state(module) if small else module.state_dict()
    if wrong := sorted(set(expected) ^ set(state)):
        raise CheckpointError(f"{source}: its tensors do not fit config.json (first difference: {wrong[0]})")
    try:
        module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: does not fit config.json: {str(error).splitlines()[-1].strip()}") from None


def _convert(model: Mixture, dtype: torch.dtype | None) -> None:
    """Convert trunk, branches and the router's language model to a dtype, trained weights too, and compute in it."""
    if dtype is None:
        return
    model.config.backbone = model.config.backbone | {"dtype": str(dtype).removeprefix("torch.")}
    for _, part in _parts(model):
        part.to(dtype)
    for part in model.modules():  # the experts' branches have configurations of their own
        if part is not model and isinstance(part, PreTrainedModel):
            part.config.dtype = dtype


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
    """Return trunk and a task's branch as one plain decoder, onto which PEFT loads the task's adapters."""
    return join(model.trunk, model.task_model(task).base.branch)  # pyright: ignore[reportArgumentType]


def small_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state without the large parts: no trunk, branches, LoRA or language model."""
    large = ("trunk.", ".branch.", ".language_model.")
    return {name: t for name, t in model.state_dict().items() if not any(part in f".{name}" for part in large)}


def _parts(model: Mixture) -> Iterator[tuple[str, nn.Module]]:
    """Yield file name and module of each large part, without the experts' LoRA."""
    if model.trunk is not None:
        yield TRUNK, model.trunk
    if model.router.language_model is not None:
        yield "router/language_model.safetensors", model.router.language_model
    yield GENERAL, model.general.branch
    if not model.config.shared_branch:
        for task in model.config.tasks:
            yield f"tasks/{folder_name(task)}/branch.safetensors", model.task_model(task).base.branch


def _expert_path(task: str, capability: str) -> str:
    return f"tasks/{folder_name(task)}/experts/{folder_name(capability)}"


# --- the hub -------------------------------------------------------------------------------------------------------


def local_folder(path: str | Path, hub: Mapping[str, Any]) -> Path:
    """Return a checkpoint's folder, after a download with the options `hub` if the path is a hub name.

    Raises:
        CheckpointError: there is no such model.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise CheckpointError(f"{path}: is not a dmoerm model (it has no config.json); {_FOLDER_HINT}")
    if str(path).count("/") != 1:
        raise CheckpointError(f"{path}: there is no such folder; {_FOLDER_HINT}, human, or a hub name such as me/model")
    return download(str(path), **hub)


def download(name: str, files: Sequence[str] = FILES, **options: Any) -> Path:
    """Download a checkpoint and return its local folder; code and pickles in the repository are not downloaded.

    Args:
        files: patterns of the files to download.
        options: as for `huggingface_hub.snapshot_download`.

    Raises:
        CheckpointError: the name or revision does not exist, no permission, or no network.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **options))
    except LocalEntryNotFoundError:
        offline = constants.HF_HUB_OFFLINE or options.get("local_files_only")
        cause = "no such model in the hub's cache" if offline else "the hub cannot be reached"
        reason = f"there is no such folder, and {cause}; {_FOLDER_HINT}"
    except GatedRepoError:
        reason = f"access to this model must be requested on the hub; {_LOG_IN}"
    except RepositoryNotFoundError:
        cause = "there is no such folder, and no such model on the hub"
        reason = f"{cause}; {_FOLDER_HINT}, or for a private model {_LOG_IN}"
    except Exception as error:  # the hub's client raises many kinds
        reason = f"is neither a local model folder nor a model on the hub: {_reason(error)}; {_LOG_IN}"
    raise CheckpointError(f"{name}: {reason}")


def upload(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a checkpoint folder as one commit and return the commit's URL.

    Args:
        name: `me/name`; the repository is created if it does not exist.
        private: visibility of a repository that is created; default: the account's.
        message: the commit message.
        revision: the branch; default: the main branch.
        token: default: the token that the hub's client has stored.

    Raises:
        CheckpointError: no permission, no network, or an invalid name.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message or "Upload a DMoERM",
            revision=revision,
            allow_patterns=list(FILES),
            delete_patterns=["*.safetensors", "*.json", SUMS, PROMPTS_FILE],  # an earlier model's; texts stay
        )
    except Exception as error:  # the hub's client raises many kinds
        raise CheckpointError(f"{name}: the model cannot be uploaded: {_reason(error)}; {_LOG_IN}") from None
    return commit.commit_url


def rename_card(card: str, name: str) -> str:
    """Return the model card with the model's path in its examples replaced by a name on the hub."""
    return _NAMES_IN_CARD.sub(name, card)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


# --- digests: what two models must have in common so that a task of one works in the other ------------------------


def digest(*parts: nn.Module | None) -> str:
    """Return the first 16 digits of the digest of all weights of the parts."""
    return state_digest(*(part.state_dict() for part in parts if part is not None))[:16]


def check_same_trunk(model: Mixture, other: Mixture, names: tuple[str, str]) -> None:
    """Raise `CheckpointError`, with both models' names, unless their tasks read the same inputs in the same form."""
    settings = {"encoding": EncodingConfig, "lora": LoRAConfig, "aggregator": AggregatorConfig}

    def common(model: Mixture) -> dict[str, Any]:
        config = model.config
        vocabulary = json.dumps([sorted(model.tokenizer.get_vocab().items()), model.tokenizer.chat_template])
        return {
            "trunk": digest(model.trunk, model.general.branch if config.shared_branch else None),
            "router": digest(model.router.language_model),
            "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest()[:16],
            **{name: getattr(config, name) for name in ("branch_layer", "shared_branch", "router_kind")},
            **{name: kind(**getattr(config, name)).model_dump(mode="json") for name, kind in settings.items()},
        }

    mine, theirs = common(model), common(other)
    if different := [name for name in mine if mine[name] != theirs[name]]:
        values = ", ".join(f"{name} ({mine[name]} and {theirs[name]})" for name in different)
        raise CheckpointError(f"{names[0]} and {names[1]}: differ in {values}; merge models grown from the same model")


def check_same_general(model: Mixture, other: Mixture, task: str, name: str) -> None:
    """Raise `CheckpointError`, with the `other` model's name, if its task reads a general model that `model` lacks."""
    task_model = other.task_model(task)
    linear = task_model.aggregator.linear
    if not task_model.reads_general or linear is None or linear.weight[len(task_model.experts) + 1] == 0:
        return
    mine, theirs = (digest(each.general.branch, each.general.head) for each in (model, other))
    if mine != theirs:
        hint = "grow both from the same model, or train with phase3.base_scores=[per_task, all_labels]"
        values = f"{theirs}, not {mine}"
        raise CheckpointError(f"{name}: task {task!r} reads the score of another general model ({values}); {hint}")
