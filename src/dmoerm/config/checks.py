"""Find settings that contradict each other or have no effect.

A setting has no effect if another one switches its part off. Such a setting is refused if it differs from its default;
a resolved config, which lists all settings, therefore loads. `config` is a `Config`, whose module imports this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_PHASES = ("phase0", "phase1", "phase2", "phase3")


def contradictions(config: Any) -> Iterator[str]:
    """Yield a message for each setting that another one forbids or switches off."""
    exact = {name: getattr(config, name).fit == "exact" for name in _PHASES}
    frozen, lora = config.base == "frozen", config.phase2.lora.rank
    if config.base == "lora" and not config.base_lora.rank:
        yield "base is lora but base_lora.rank is 0; set a rank above 0, or set base to frozen"
    for phase in ("phase0", "phase1"):
        if exact[phase] and not frozen:
            hint = f"set {phase}.fit to trained, and {phase}.head_first to true for an exact start"
            yield f"{phase}.fit is exact but base is {config.base}, which trains more than heads; {hint}"
        if frozen and not exact[phase]:
            yield f"{phase}.fit is trained but base is frozen: heads alone are fitted exactly; set {phase}.fit to exact"
    if not lora and not exact["phase2"]:
        yield "phase2.lora.rank is 0: heads alone are fitted exactly; set phase2.fit to exact, or a rank above 0"
    if exact["phase3"] and config.phase1.phase1_fraction:
        yield "phase3.fit is exact, which weights held-out scores of all groups: set phase1.phase1_fraction to 0"
    if "all_labels" in config.phase3.base_scores and not frozen:
        yield f"phase3.base_scores has all_labels, which needs base: frozen (got {config.base})"
    if config.backbone.quantization != "none" and (not frozen or config.router.kind == "own"):
        needs = "which needs frozen weights: base: frozen, router.kind: trunk"
        yield f"backbone.quantization is {config.backbone.quantization}, {needs}"
    if config.backbone.branch_layer == 0 and config.router.kind == "trunk":
        yield "router.kind is trunk but backbone.branch_layer is 0: there is no trunk; use own"
    for reason, names in _switched_off(config, exact, frozen, lora).items():
        for name in names:
            value, default = _value_and_default(config, name)
            if value != default:
                yield f"{name} has no effect while {reason}"


def _switched_off(config: Any, exact: dict[str, bool], frozen: bool, lora: int) -> dict[str, list[str]]:
    """Return reason → names of the settings that have no effect for that reason."""
    off: dict[str, list[str]] = {}
    if frozen:
        off["base is frozen: an exact fit has no start"] = ["warm_start"]
    if config.base != "lora":
        off[f"base is {config.base}; set base to lora"] = ["base_lora"]
    if frozen and not lora and config.router.kind == "trunk":
        off["no layers are trained, only heads"] = ["gradient_checkpointing"]
        if all(exact.values()):
            off["every step is exact"] = [f"training.{name}" for name in type(config.training).model_fields]
    if not exact["phase3"] and config.phase3.inputs == "scores":
        off["phase3.inputs is scores: the aggregator has no MLP"] = ["phase3.hidden", "phase3.dropout"]
    if config.phase3.inputs == "embeddings":
        off["phase3.inputs is embeddings: the aggregator reads no scores"] = ["phase3.base_scores"]
    if not config.data.files:
        off["data.files is empty"] = ["data.format", "data.split", "data.task", "data.map", "data.skip_bad"]
    if config.data.test_files:
        off["data.test_files names the held-out groups"] = ["data.test_fraction"]
    if not config.data.capability_labels:
        off["data.capability_labels is empty"] = ["data.soft_labels", "data.inconsistent_weight"]
    return off


def _value_and_default(config: Any, name: str) -> tuple[Any, Any]:
    *parents, last = name.split(".")
    section = config
    for parent in parents:
        section = getattr(section, parent)
    return getattr(section, last), type(section).model_fields[last].default
