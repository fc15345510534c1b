"""config.json of a model's folder as it may be: right types, names that stay inside, sizes that fit what lies there.

A folder may come from anywhere. What is not named here is not taken over, so that no setting of the libraries below can
make them fetch or run anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..config import AggregatorConfig, EncodingConfig, HeadConfig, LoRAConfig
from ..errors import BackboneError, CheckpointError, shorten
from ..names import check_name
from .backbone import check_config
from .configuration import DMoERMConfig
from .integrity import count_tensors, read_json

_Name = Annotated[str, AfterValidator(lambda name: check_name("stored", name, _MOST_CHARACTERS))]
_MOST_CHARACTERS = 256  # merged tasks name capabilities `task_capability`
_MOST_LAYERS = 16_384  # of all tasks together
# What a backbone's numbers may be, by words of their names: beyond any that there is, and built in seconds.
_MOST = {"layers": 4096, "experts": 4096, "heads": 4096, "head_dim": 1 << 16, "size": 1 << 24}


class _Stored(BaseModel):
    """What config.json may say; what else it says is passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)
    backbone: dict[str, Any]
    branch_layer: int = Field(ge=0)
    tasks: dict[_Name, Annotated[list[_Name], Field(max_length=256)]] = Field(max_length=256)
    shared_branch: bool = False
    router_kind: Literal["trunk", "own"] = "trunk"
    threshold: float = Field(default=0.5, ge=0, le=1)
    encoding: dict[str, Any] = {}
    head: dict[str, Any] = {}
    lora: dict[str, Any] = {}
    aggregator: dict[str, Any] = {}


def read_config(folder: Path) -> DMoERMConfig:
    """The configuration of a model's folder. Raises `CheckpointError` where it describes none that could lie there."""
    file = folder / "config.json"
    settings = read_json(file)
    if (kind := settings.get("model_type")) != DMoERMConfig.model_type:
        expected = repr(DMoERMConfig.model_type)
        raise CheckpointError(
            f"{file}: model_type is {shorten(kind)}, not {expected}; give the folder that `train` wrote"
        )
    try:
        stored = _Stored.model_validate(settings)
        for part, of in ((stored.encoding, EncodingConfig), (stored.head, HeadConfig), (stored.lora, LoRAConfig)):
            of.model_validate(part)
        AggregatorConfig.model_validate(stored.aggregator)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise _no_model(file, f"{place}: {fault['msg']} (got {shorten(fault['input'])})") from None
    try:
        _check_backbone(file, stored)
    except RecursionError:
        raise _no_model(file, "backbone: is nested too deeply") from None
    config = DMoERMConfig(**stored.model_dump())
    try:
        check_config(config.backbone_config)
    except BackboneError as error:
        raise CheckpointError(f"{file}: this model cannot score: {error}; train it again") from None
    except Exception as error:  # transformers raises many kinds for a configuration that is not valid
        raise _no_model(file, shorten(str(error))) from None
    return config


def _check_backbone(file: Path, stored: _Stored) -> None:
    kind, layers = stored.backbone.get("model_type"), stored.backbone.get("num_hidden_layers")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _no_model(file, f"backbone.model_type: {shorten(kind)} is no decoder")
    for name, value in _numbers(stored.backbone):
        most = min((most for word, most in _MOST.items() if word in name), default=None)
        if most is not None and not -1 <= value <= most:  # some kinds write -1 for none
            raise _no_model(file, f"backbone.{name}: {shorten(value)} is out of range")
    if not isinstance(layers, int) or not stored.branch_layer < layers:
        raise _no_model(file, f"backbone.num_hidden_layers: {shorten(layers)} layers, cut at {stored.branch_layer}")
    parts = ["general/branch.safetensors", *(["trunk.safetensors"] if stored.branch_layer else [])]
    tensors = sum(count_tensors(file.parent / part) for part in parts)
    if layers > tensors or layers * (1 + len(stored.tasks)) > _MOST_LAYERS:
        raise _no_model(file, f"backbone.num_hidden_layers: {layers} layers, but there are {tensors} tensors")


def _numbers(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value


def _no_model(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file}: describes no model: {why}")
