"""config.json: the configuration of a DMoERM with the history of its changes, and the checks on reading it.

A checkpoint may come from anywhere. `read_config` accepts only the fields named here, with the right types and with
sizes that fit the checkpoint's files, so no setting can make transformers run anything, and only the name of the
backbone can make it download something: safetensors files.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from transformers import AutoConfig, PretrainedConfig

from ..config import AggregatorConfig, EncodingConfig, LoRAConfig
from ..errors import BackboneError, CheckpointError, did_you_mean, first_fault, shorten
from ..names import check_name
from .backbone import check_config
from .families import is_text_model
from .integrity import count_tensors, read_json
from .router import Routing

FORMAT_VERSION = 2
"""The version of the checkpoint's files and of their meaning. A release reads its own version only."""
# Settings of a backbone that select how it runs or that name code; they are not part of the architecture.
_IGNORED_PREFIXES = ("_", "attn_implementation", "experts_implementation", "auto_map", "quantization_config")
_LABEL = "REWARD"  # the label of a score in Hugging Face's pipelines
# Families that number the positions of a text from the padding token's id + 1, as RoBERTa does.
_ROBERTA = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text")
_POSITIONS_AFTER_PADDING = frozenset((*_ROBERTA, "esm", "ibert", "longformer", "luke", "markuplm", "mpnet"))
_MAX_CHARACTERS = 256  # of a name; merged tasks name capabilities `task_capability`
_MAX_LAYERS = 16_384  # of all tasks together
# Upper bounds on a backbone's integers, by a part of their names: above any existing model, and still built in seconds.
_MAX_VALUES = {"layers": 4096, "experts": 4096, "heads": 4096, "head_dim": 1 << 16, "size": 1 << 24}
_Name = Annotated[str, AfterValidator(lambda name: check_name("stored", name, _MAX_CHARACTERS))]


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class ModelChange(BaseModel):
    """One change of a trained model."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    change: Literal["add", "retrain", "remove", "export", "merge"]
    task: str
    capability: str | None = None  # None for the whole task
    time: str = Field(default_factory=now)
    data: str | None = None  # SHA-256 of the training groups, if the change needed data
    source: str | None = None  # folder name of the other model of a merge
    settings: dict[str, Any] = {}  # those that differ from run.yaml, by name

    def sentence(self) -> str:
        """Describe the change in one line of Markdown."""
        done = {"add": "added", "retrain": "retrained", "remove": "removed", "export": "exported", "merge": "merged"}
        name = self.task if self.capability is None else f"{self.task}/{self.capability}"
        parts = [f"{_code(name)} {done[self.change]} at {_code(self.time)}"]
        parts += [f"from {_code(self.source)}"] if self.source else []
        parts += [f"data {_code(self.data[:16])}"] if self.data else []
        settings = "; ".join(f"{key}={value}" for key, value in self.settings.items())
        return ", ".join([*parts, *([f"settings {_code(settings)}"] if settings else [])])


class BackboneSource(BaseModel):
    """Where the backbone of a checkpoint is that contains only what was trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1, max_length=4096)  # `smollm2`, a hub name, or the absolute path of a folder
    revision: str | None = None  # the commit on the hub
    digest: str = Field(pattern="^[0-9a-f]{64}$")  # of the weights in use; see `checkpoint.digest`


class _StoredConfig(BaseModel):
    """The fields of config.json that are read. Fields of transformers' base class are ignored; others are refused."""

    model_config = ConfigDict(extra="ignore", strict=True)
    format_version: int
    backbone: dict[str, Any]
    branch_layer: int = Field(ge=0)
    tasks: dict[_Name, Annotated[list[_Name], Field(max_length=256)]] = Field(max_length=256)
    shared_branch: bool = False
    router_kind: Literal["trunk", "own"] = "trunk"
    threshold: float = Field(default=0.5, ge=0, le=1)
    routing: Routing = Routing()
    encoding: dict[str, Any] = {}
    lora: dict[str, Any] = {}
    aggregator: dict[str, Any] = {}
    history: list[ModelChange] = Field(default=[], max_length=4096)
    backbone_source: BackboneSource | None = None


# What transformers and other tools write besides the fields of `_StoredConfig`; a checkpoint's code is never run.
_BASE_FIELDS = {*PretrainedConfig().to_dict(), "torch_dtype", "num_labels", "pad_token_id", "auto_map"}


class DMoERMConfig(PretrainedConfig):
    """The architecture and settings of a DMoERM.

    `_StoredConfig` has the types and defaults; fields that are models there are dicts here.
    """

    model_type = "dmoerm"

    if TYPE_CHECKING:  # transformers would make dataclass fields of them
        format_version: int  # `FORMAT_VERSION` of the release that wrote the checkpoint
        branch_layer: int  # the layer at which the trunk ends
        tasks: dict[str, list[str]]  # task → names of its capabilities, in alphabetical order
        shared_branch: bool  # all tasks use the general model's branch (`base: frozen`)
        router_kind: str  # see `RouterConfig`
        threshold: float  # see `RouterConfig`
        backbone: dict[str, Any]  # the backbone's own configuration, with the number of layers used
        routing: dict[str, Any]  # of `Routing`, which training chooses
        encoding: dict[str, Any]  # of `EncodingConfig`
        lora: dict[str, Any]  # of `LoRAConfig`
        aggregator: dict[str, Any]  # of `AggregatorConfig`
        history: list[dict[str, Any]]  # the changes since training, each as the fields of a `ModelChange`
        backbone_source: dict[str, Any] | None  # the fields of a `BackboneSource`; None: all weights are in the folder

    def __init__(self, **settings: Any) -> None:
        given = {name: settings.pop(name, None) for name in _StoredConfig.model_fields}
        # transformers also builds a configuration without any field
        required: dict[str, Any] = {"format_version": FORMAT_VERSION, "backbone": {}, "branch_layer": 0, "tasks": {}}
        given = required | {name: value for name, value in given.items() if value is not None}
        for name, value in _StoredConfig.model_construct(**given):
            setattr(self, name, copy.deepcopy(value))
        # sorted, because config.json is written with sorted keys and the order is that of the router's outputs
        self.tasks = {task: list(capabilities) for task, capabilities in sorted(self.tasks.items())}
        self.routing = Routing.model_validate(self.routing).model_dump()
        self.history = [dict(change) for change in self.history]
        self.pad_token_id = settings.pop("pad_token_id", None)  # the tokenizer's, for tools that pad batches
        super().__init__(**{"num_labels": 1, "id2label": {0: _LABEL}, "label2id": {_LABEL: 0}} | settings)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """Make a configuration of settings; `backbone=PATH` of the auto classes is an option and not that setting."""
        path = {name: options.pop(name) for name in ("backbone",) if isinstance(options.get(name), str | Path)}
        made: Any = super().from_dict(config_dict, **options)
        return (made[0], made[1] | path) if options.get("return_unused_kwargs") else made

    @property
    def backbone_config(self) -> PretrainedConfig:
        """The backbone's configuration as transformers' own class."""
        settings = {name: value for name, value in self.backbone.items() if not name.startswith(_IGNORED_PREFIXES)}
        return AutoConfig.for_model(settings.pop("model_type"), **settings)

    @property
    def heads_only(self) -> bool:
        """Whether a task consists of heads on the general branch, without a branch or LoRA of its own."""
        return self.shared_branch and not LoRAConfig(**self.lora).rank

    @property
    def width(self) -> int:
        """The width D of an embedding."""
        return self.backbone["hidden_size"] * (2 if EncodingConfig(**self.encoding).pooling == "both" else 1)

    @property
    def text_tokens(self) -> int:
        """Maximum tokens of a prompt with a response: the setting's, or the backbone's if it accepts fewer."""
        longest, backbone = EncodingConfig(**self.encoding).max_length, self.backbone_config
        accepted = getattr(backbone, "max_position_embeddings", None) or longest
        if backbone.model_type in _POSITIONS_AFTER_PADDING:
            accepted -= (backbone.pad_token_id or 0) + 1
        return min(longest, accepted)


def backbone_settings(config: PretrainedConfig) -> dict[str, Any]:
    """Return a backbone's configuration without its path; sizes have their common names too, such as `hidden_size`."""
    settings = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    return settings | {name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers")}


def stored_config(config: PretrainedConfig) -> DMoERMConfig:
    """Return a copy with only the fields that `read_config` reads; trainers and libraries set others."""
    fields = (*_StoredConfig.model_fields, "architectures", "pad_token_id")
    return DMoERMConfig(**copy.deepcopy({name: getattr(config, name) for name in fields}))


def read_config(folder: Path) -> DMoERMConfig:
    """Read the configuration of a checkpoint folder.

    Raises:
        CheckpointError: config.json is missing or invalid, or does not fit the weight files in its folder.
    """
    file = folder / "config.json"
    settings = read_json(file)
    if (kind := settings.get("model_type")) != "dmoerm":
        hint = "give the folder that `train` wrote"
        raise CheckpointError(f"{file}: model_type is {shorten(kind)}, not 'dmoerm'; {hint}")
    if (version := settings.get("format_version", 1)) != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format_version is {shorten(version)}, and this release reads {FORMAT_VERSION}; "
            "install the release of dmoerm that wrote the checkpoint, or train it again"
        )
    try:
        if unknown := sorted(settings.keys() - _StoredConfig.model_fields.keys() - _BASE_FIELDS):
            hint = did_you_mean(unknown[0], _StoredConfig.model_fields) or "remove it, or correct its spelling"
            raise ValueError(f"{unknown[0]}: unknown field; {hint}")
        stored = _StoredConfig.model_validate(settings)
        EncodingConfig.model_validate(stored.encoding)
        LoRAConfig.model_validate(stored.lora)
        AggregatorConfig.model_validate(stored.aggregator)
        _check_backbone(folder, stored)
        if unknown := [task for task in stored.routing.pooled if task not in stored.tasks]:
            raise ValueError(f"routing.pooled: there is no task {shorten(unknown[0])}")
        config = DMoERMConfig(**stored.model_dump())
        check_config(config.backbone_config)
    except BackboneError as error:
        raise CheckpointError(f"{file}: this model cannot score: {error}; train it again") from None
    except CheckpointError:  # of a weight file
        raise
    except Exception as error:  # transformers raises many kinds for an invalid backbone
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, ValidationError):
            fault = first_fault(error)
            reason = f"{fault.field}: {fault.message} (got {shorten(error.errors()[0]['input'])})"
        elif isinstance(error, RecursionError):
            reason = "backbone: is nested too deeply"
        raise CheckpointError(f"{file}: is not a valid configuration: {reason}") from None
    return config


def _check_backbone(folder: Path, stored: _StoredConfig) -> None:
    """Raise `ValueError` for a backbone that cannot be built, or not within the weights that are stored."""
    kind, layers = stored.backbone.get("model_type"), stored.backbone.get("num_hidden_layers")
    if not is_text_model(kind):
        raise ValueError(f"backbone.model_type: {shorten(kind)} is not a text model")
    for name, value in _integers(stored.backbone):
        limit = min((limit for part, limit in _MAX_VALUES.items() if part in name), default=None)
        if limit is not None and not -1 <= value <= limit:  # some families write -1 for None
            raise ValueError(f"backbone.{name}: {shorten(value)} is out of range")
    if not isinstance(layers, int) or not stored.branch_layer < layers:
        split = f"{shorten(layers)} layers, split at layer {stored.branch_layer}"
        raise ValueError(f"backbone.num_hidden_layers: {split}")
    if layers * (1 + len(stored.tasks)) > _MAX_LAYERS:
        raise ValueError(f"backbone.num_hidden_layers: {layers} layers for {len(stored.tasks)} tasks are too many")
    if stored.backbone_source is not None:  # whose layers are counted when it is loaded
        if (dtype := stored.backbone.get("dtype")) not in ("float32", "bfloat16"):
            raise ValueError(f"backbone.dtype: {shorten(dtype)} is not float32 or bfloat16")
        return
    parts = ["general/branch.safetensors", *(["trunk.safetensors"] if stored.branch_layer else [])]
    tensors = sum(count_tensors(folder / part) for part in parts)
    if layers > tensors:
        raise ValueError(f"backbone.num_hidden_layers: {layers} layers, but only {tensors} tensors are stored")


def _integers(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the integers of nested settings with their names."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _integers(value)
        elif isinstance(value, int):
            yield name, value


# --- the model card ------------------------------------------------------------------------------------------------

_TITLE, _NEXT = "## Changes after training", "## Use\n"
_SECTION = re.compile(rf"{_TITLE}\n.*?(?=^## |\Z)", re.S | re.M)


def with_changes(card: str, history: Sequence[dict[str, Any]]) -> str:
    """Return a model card whose section of changes lists the history; the section is added if the card has none."""
    lines = "".join(f"* {ModelChange(**change).sentence()}\n" for change in history)
    remark = "Figures above this section are of the model before these changes.\n\n"
    section = f"{_TITLE}\n\n{remark}{lines}\n"
    if _TITLE in card:
        return _SECTION.sub(lambda _: section, card, count=1)
    return card.replace(_NEXT, section + _NEXT, 1) if _NEXT in card else f"{card.rstrip()}\n\n{section}".lstrip()


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'") + "`"
