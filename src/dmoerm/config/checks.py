"""Find settings without effect.

A setting has no effect if another one switches its part off. Such a setting is refused if it differs from its default;
a resolved config, which lists all settings, therefore loads. `config` is a `Config`, whose module imports this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_BRANCH = ("head_first", "head_learning_rate")
_OPTIMIZATION = (
    "epochs",
    "steps",
    "learning_rate",
    "batch_groups",
    "gradient_accumulation",
    "weight_decay",
    "warmup",
    "evaluations",
    "patience",
    "metric_for_best_model",
)


def settings_without_effect(config: Any) -> Iterator[str]:
    """Yield a message for each setting that differs from its default and has no effect."""
    for reason, names in _switched_off(config).items():
        for name in names:
            if _value(config, name) != _default(config, name):
                yield f"{name} has no effect while {reason}"


def epochs_without_effect(given: Mapping[str, Any], config: Any) -> Iterator[str]:
    """Yield a message for each given `epochs` that has no effect because `steps` comes from an extended config.

    Args:
        given: settings as given in one file or on the command line, without those that they extend.
        config: the resolved settings.
    """
    for phase, settings in given.items():
        resolved = getattr(config, phase, None)
        if not isinstance(settings, Mapping) or "steps" in settings or not settings.get("epochs"):
            continue
        if (steps := getattr(resolved, "steps", None)) is not None:
            yield f"{phase}.epochs has no effect while {phase}.steps is {steps}; set {phase}.steps to null"


def unsuitable_auto(config: Any) -> Iterator[str]:
    """Yield a message for each `l2: auto` of a step that is not an exact fit of linear heads."""
    trains_branch = {"phase0": config.base != "frozen", "phase1": config.base != "frozen"}
    trains_branch["phase2"] = config.phase2.lora.rank > 0
    for phase, branch in trains_branch.items():
        if branch and getattr(config, phase).l2 == "auto":
            hint = f"set it to a number, or {phase}.head_first.l2 to auto"
            yield f"{phase}.l2 is auto but the step trains more than heads; {hint}"
    if set(_exact(config)) - {"phase3"} and (config.head.hidden or config.head.dropout):
        yield "l2 is auto, which fits linear heads exactly; set head.hidden and head.dropout to 0, or l2 to a number"
    if config.phase3.l2 == "auto" and (config.phase3.inputs != "scores" or config.phase1.phase1_fraction):
        yield (
            "phase3.l2 is auto, which weights held-out scores: set phase3.inputs to scores and phase1.phase1_fraction "
            "to 0"
        )
    if "all_labels" in config.phase3.base_scores and not (config.base == "frozen" and config.phase1.l2 == "auto"):
        yield "phase3.base_scores has all_labels, which needs base: frozen and phase1.l2: auto"


def _exact(config: Any) -> list[str]:
    """Return the names of the steps with `l2: auto`."""
    steps = {name: getattr(config, name) for name in ("phase0", "phase1", "phase2", "phase3")}
    steps |= {f"{name}.head_first": step.head_first for name, step in steps.items() if name != "phase3"}
    return [name for name, step in steps.items() if step is not None and step.l2 == "auto"]


def _switched_off(config: Any) -> dict[str, list[str]]:
    """Return reason → names of the settings that have no effect for that reason."""
    off: dict[str, list[str]] = {}
    if config.base == "frozen":
        names = [f"{phase}.{name}" for phase in ("phase0", "phase1") for name in _BRANCH]
        off["base is frozen: the step trains a head only"] = names
        if config.phase1.l2 == "auto":
            off["base is frozen and phase1.l2 is auto: there is no start"] = ["warm_start"]
    if config.base != "lora":
        off[f"base is {config.base}; set base to lora"] = ["base_lora"]
    if not config.phase2.lora.rank:
        names = [*_BRANCH, "lora.alpha", "lora.dropout", "lora.targets"]
        off["phase2.lora.rank is 0: the step trains heads only"] = [f"phase2.{name}" for name in names]
    if config.base == "frozen" and not config.phase2.lora.rank and config.router.kind == "trunk":
        off["no layers are trained, only heads"] = ["gradient_checkpointing"]
    if config.router.kind == "trunk":
        off["router.kind is trunk: the fit is exact"] = [f"router.{setting}" for setting in _OPTIMIZATION]
    if config.phase3.inputs == "scores":
        off["phase3.inputs is scores: the aggregator has no MLP"] = ["phase3.hidden", "phase3.dropout"]
    if config.phase3.inputs == "embeddings":
        off["phase3.inputs is embeddings: the aggregator reads no scores"] = ["phase3.base_scores"]
    for name in _exact(config):
        off[f"{name}.l2 is auto: the fit is exact"] = [f"{name}.{setting}" for setting in _OPTIMIZATION]
    if not config.data.files:
        off["data.files is empty"] = ["data.format", "data.split", "data.task", "data.map", "data.skip_bad"]
    if config.data.test_files:
        off["data.test_files names the held-out groups"] = ["data.test_fraction"]
    if not config.data.capability_labels:
        off["data.capability_labels is empty"] = ["data.soft_labels", "data.inconsistent_weight"]
    return off


def _value(config: Any, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _default(config: Any, name: str) -> Any:
    parent, _, last = name.rpartition(".")
    return type(_value(config, parent) if parent else config).model_fields[last].default
