"""The settings of a model's run, for more training of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Config, changed, load_config
from ..config.reading import apply_override, flat, validated
from ..config.settings import DataConfig
from ..errors import CheckpointError, ConfigError
from ..model import DMoERM

_OF_DATA = (
    *("files", "test_files", "validation_files", "capability_labels", "groups_per_task"),
    *("task", "format", "map", "split", "skip_bad", "soft_labels", "inconsistent_weight"),
)


def without_data() -> dict[str, Any]:
    """Return the defaults of the settings that name a run's data and its tasks."""
    return {"taxonomy": None} | {f"data.{name}": getattr(DataConfig(), name) for name in _OF_DATA}


def changed_config(folder: Path, model: DMoERM, resets: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """Return the settings of the model's run with other values; those that shape the model must be the model's."""
    if not (folder / "run.yaml").is_file():
        raise CheckpointError(f"{folder}: has no run.yaml, so that its settings are unknown; train it again")
    trained = changed(load_config(folder / "run.yaml"), resets)
    settings = trained.model_dump(mode="json")
    for override in overrides:
        apply_override(settings, override)
    config = validated(Config, settings, "--set")
    stored = model.config
    shapes = [
        ("encoding", config.encoding, stored.encoding),
        ("head", config.head, stored.head),
        ("phase2.lora", config.phase2.lora, stored.lora),
        ("phase3", config.phase3, stored.aggregator),
    ]
    different = [
        f"{name}.{field}"
        for name, now, fields in shapes
        for field, value in type(now)(**fields).model_dump(include=set(fields)).items()
        if value != getattr(now, field)
    ]
    different += ["base"] if (config.base == "frozen") != stored.shared_branch else []
    different += ["router.kind"] if config.router.kind != stored.router_kind else []
    different += ["router.threshold"] if config.router.threshold != stored.threshold else []
    before, now = flat(trained.backbone.model_dump(mode="json")), flat(config.backbone.model_dump(mode="json"))
    different += [f"backbone.{name}" for name, value in now.items() if before[name] != value]
    if different:
        raise ConfigError(f"--set {different[0]}: the model was trained with another value; leave it as it is")
    return config


def changed_settings(folder: Path, config: Config) -> dict[str, Any]:
    """Return the settings that differ from those of the model's run, by name."""
    before = flat(load_config(folder / "run.yaml").model_dump(mode="json"))
    now = flat(config.model_dump(mode="json"))
    return {name: value for name, value in now.items() if before.get(name) != value}
