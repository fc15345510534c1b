"""The model: trunk and branches, router, experts, aggregator, and the checkpoint folder.

The import registers DMoERM with `AutoConfig` and `AutoModelForSequenceClassification`.
"""

from transformers import AutoConfig, AutoModelForSequenceClassification

from .checkpoint import task_backbone
from .configuration import DMoERMConfig
from .dmoerm import DMoERM
from .training_prompts import TrainingPrompts

__all__ = ["DMoERM", "DMoERMConfig", "TrainingPrompts", "task_backbone"]

AutoConfig.register(DMoERMConfig.model_type, DMoERMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(DMoERMConfig, DMoERM, exist_ok=True)
