"""The model: encoding, trunk and branch, router, experts, aggregator, and its folder on disk.

Importing it makes `AutoConfig` and `AutoModelForSequenceClassification` know a DMoERM's folder.
"""

from transformers import AutoConfig, AutoModelForSequenceClassification

from .checkpoint import task_backbone
from .configuration import DMoERMConfig
from .dmoerm import DMoERM

__all__ = ["DMoERM", "DMoERMConfig", "task_backbone"]

AutoConfig.register(DMoERMConfig.model_type, DMoERMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(DMoERMConfig, DMoERM, exist_ok=True)
