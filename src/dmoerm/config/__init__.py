"""The settings of a run: one frozen tree of documented fields, read from YAML and from `--set a.b=value`.

Each field has its docstring; a wrong name or value raises `ConfigError` that names it. The resolved settings are
written beside what they made.
"""

from .reading import apply_override, changed, dump_config, load_config, shipped_configs, validated
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
    "shipped_configs",
    "validated",
]
