"""The configuration of a DMoERM: what `config.json` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ..config import EncodingConfig
from .heads import embedding_width

# What says how a backbone is run, not what it is, or names code.
_NOT_TAKEN = ("_", "attn_implementation", "experts_implementation", "auto_map", "quantization_config")
_LABEL = "REWARD"  # what Hugging Face's pipelines call a reward


class DMoERMConfig(PretrainedConfig):
    """What it takes to build a DMoERM before its weights are read.

    Attributes:
        backbone: the backbone's own configuration, as a dict, with the number of layers used.
        branch_layer: the layer at which the trunk ends.
        tasks: task → names of its capabilities; kept in alphabetical order.
        shared_branch: all tasks use the general model's branch (`base: frozen`).
        router_kind, threshold: see `RouterConfig`.
        encoding, head, lora, aggregator: see the settings of the same names.
        pad_token_id: the tokenizer's; tools that pad batches look for it here.
    """

    model_type = "dmoerm"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        branch_layer: int = 0,
        tasks: Mapping[str, Sequence[str]] | None = None,
        shared_branch: bool = False,
        router_kind: str = "trunk",
        threshold: float = 0.5,
        encoding: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        aggregator: dict[str, Any] | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone, self.branch_layer = backbone or {}, branch_layer
        # by name: config.json is written with sorted keys, and the order is that of the router's outputs
        self.tasks = {task: list(capabilities) for task, capabilities in sorted((tasks or {}).items())}
        self.shared_branch, self.router_kind, self.threshold = shared_branch, router_kind, threshold
        self.encoding, self.head = encoding or {}, head or {}
        self.lora, self.aggregator = lora or {}, aggregator or {}
        self.pad_token_id = pad_token_id
        kwargs = {"num_labels": 1, "id2label": {0: _LABEL}, "label2id": {_LABEL: 0}} | kwargs
        super().__init__(**kwargs)

    @property
    def backbone_config(self) -> PretrainedConfig:
        """The backbone's configuration as transformers knows it."""
        settings = {name: value for name, value in self.backbone.items() if not name.startswith(_NOT_TAKEN)}
        return AutoConfig.for_model(settings.pop("model_type"), **settings)

    @property
    def width(self) -> int:
        """D, an embedding's width."""
        return embedding_width(self.backbone["hidden_size"], EncodingConfig(**self.encoding).pooling)
