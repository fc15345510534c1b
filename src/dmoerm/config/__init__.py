"""The settings of a run: a frozen tree of documented fields, read from YAML and from `--set a.b=value`.

Every field has a docstring, from which docs/settings.md is generated. An invalid name or value raises a `ConfigError`
that names it. The resolved settings are saved with the results of a run.
"""

from .loading import apply_override, changed, dump_config, load_config, parse_override, shipped_configs, validated
from .settings import (
    DATA_DIR_VARIABLE,
    AggregatorConfig,
    BackboneConfig,
    BranchStepConfig,
    Config,
    DataConfig,
    EncodingConfig,
    ExpertConfig,
    HeadConfig,
    HeadStepConfig,
    LearningRate,
    LoRAConfig,
    Phase1Config,
    RayConfig,
    RouterConfig,
    StepConfig,
)

__all__ = [
    "DATA_DIR_VARIABLE",
    "AggregatorConfig",
    "BackboneConfig",
    "BranchStepConfig",
    "Config",
    "DataConfig",
    "EncodingConfig",
    "ExpertConfig",
    "HeadConfig",
    "HeadStepConfig",
    "LearningRate",
    "LoRAConfig",
    "Phase1Config",
    "RayConfig",
    "RouterConfig",
    "StepConfig",
    "apply_override",
    "changed",
    "dump_config",
    "load_config",
    "parse_override",
    "shipped_configs",
    "validated",
]
