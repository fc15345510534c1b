"""The settings of a run: a frozen tree of documented fields, read from YAML and from `--set a.b=value`.

Every field has a docstring, from which docs/settings.md is generated. An invalid name or value raises a `ConfigError`
that names it. The resolved settings are saved with the results of a run.
"""

from .loading import apply_override, changed, dump_config, load_config, parse_override, shipped_configs, validated
from .settings import (
    AggregatorConfig,
    BackboneConfig,
    BranchStepConfig,
    Config,
    DataConfig,
    EncodingConfig,
    ExactConfig,
    ExpertConfig,
    LearningRate,
    LoRAConfig,
    OwnRouterConfig,
    Phase1Config,
    RouterConfig,
    StepConfig,
    TrainedAggregatorConfig,
    TrainingConfig,
)

__all__ = [
    "AggregatorConfig",
    "BackboneConfig",
    "BranchStepConfig",
    "Config",
    "DataConfig",
    "EncodingConfig",
    "ExactConfig",
    "ExpertConfig",
    "LearningRate",
    "LoRAConfig",
    "OwnRouterConfig",
    "Phase1Config",
    "RouterConfig",
    "StepConfig",
    "TrainedAggregatorConfig",
    "TrainingConfig",
    "apply_override",
    "changed",
    "dump_config",
    "load_config",
    "parse_override",
    "shipped_configs",
    "validated",
]
