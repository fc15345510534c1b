"""How a backbone of each family runs: on packed tokens, by its own forward, or not at all.

    packed      its layers run one by one on packed tokens, split into trunk and branch: layers.py and attention.py
    fallback    its own forward runs on padded texts, as one branch without a trunk: layers.py
    refused     it has no states of a text, or padding changes them

The decision needs only the configuration, so a saved model is read as it was written. docs/backbones.md lists the
families; tools/backbones_page.py measures each one's error against transformers' own forward.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

PACKED = frozenset(
    (
        *("afmoe", "apertus", "apertus1p5_text", "arcee", "aria_text", "axk1", "bitnet", "cohere", "cohere2"),
        *("cohere2_moe", "cwm", "deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe"),
        *("flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite"),
        *("gpt_oss", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium"),
        *("hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "jais2", "jetmoe", "kolibri1", "laguna"),
        *("llama", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2", "ministral", "ministral3", "mistral"),
        *("mistral4", "mixtral", "olmo", "olmo2", "olmo3", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("seed_oss", "smollm3", "solar_open", "starcoder2", "vaultgemma", "youtu"),
    )
)
"""The families whose layers reproduce their model's forward on packed tokens at every split."""

_LAYER_TYPES = {"full_attention": "", "sliding_attention": ""} | {
    "linear_attention": "its layers with linear attention carry a state from token to token",
    "chunked_attention": "its layers attend within chunks of the text",
    "conv": "its convolutions mix neighboring tokens",
}
_REASONS = {
    "gemma3n_text": "every layer reads an embedding of its own",
    "gemma4_text": "every layer reads an embedding of its own",
    "gemma4_unified_text": "layers share keys and values",
    "diffllama": "it subtracts two attentions outside the attention interface",
    "doge": "its attention computes a mask of its own",
}


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration of a composite's text model, or the configuration itself if it is not a composite."""
    return config if config.is_encoder_decoder else config.get_text_config()


def is_packed(config: Any) -> bool:
    """Return whether the layers of a text model run on packed tokens; otherwise its own forward runs."""
    return unpacked_reason(config) is None


def unpacked_reason(config: Any) -> str | None:
    """Return why the layers of a text model do not run on packed tokens, or None if they do."""
    for name in getattr(config, "layer_types", None) or ():
        if reason := _LAYER_TYPES.get(name, f"its layers of type {name} are not supported"):
            return reason
    if getattr(config, "use_bidirectional_attention", None) or getattr(config, "is_causal", True) is False:
        return "its tokens attend to later tokens"
    if config.model_type in PACKED:
        return None
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.model_type.endswith("_text"):
        return "its tokens attend to later tokens"
    return _REASONS.get(config.model_type, "it is not among the families that were verified on packed tokens")


def refused_reason(config: Any) -> str | None:
    """Return why a backbone, composite or not, cannot be used, or None if it can."""
    if config.is_encoder_decoder:
        return "it is an encoder with a decoder"
    kind = text_config(config).model_type
    if not is_text_model(kind):
        return f"{kind!r} is not a type of text model that transformers loads by itself"
    if kind == "gemma" and getattr(text_config(config), "use_bidirectional_attention", None):
        return "transformers lets its tokens attend to later tokens only in texts without padding"
    return None


def is_text_model(kind: Any) -> bool:
    """Return whether transformers has a text model of this type."""
    heads = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
    known = any(kind in names for names in (*heads, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES))
    return isinstance(kind, str) and kind in MODEL_MAPPING_NAMES and (known or kind.endswith("_text"))
