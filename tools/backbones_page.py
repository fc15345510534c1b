"""Write docs/backbones.md: how tiny random models of each family run, and their error against transformers' forward.

python tools/backbones_page.py            # about a minute on one core
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel

from dmoerm.model.families import is_packed, refused_reason, text_config, unpacked_reason
from dmoerm.model.layers import empty_part, run, split_layers
from dmoerm.model.packing import Packed, Packing

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
FAMILIES = (
    *("afmoe", "albert", "apertus", "arcee", "aria", "axk1", "aya_vision", "bart", "bert", "bitnet", "bloom"),
    *("cohere", "cohere2", "cohere2_vision", "cwm", "deberta", "deberta-v2", "deepseek_v2", "deepseek_v3"),
    *("diffllama", "distilbert", "electra", "ernie4_5", "ernie4_5_moe", "eurobert", "exaone4", "exaone4_5"),
    *("exaone_moe", "flex_olmo", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4"),
    *("gemma4_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v", "glm4v_moe", "gpt2", "gpt_neox", "gpt_oss"),
    *("granite", "granitemoe", "helium", "hunyuan_v1_dense", "idefics3", "internvl", "jetmoe", "kimi_k25", "lfm2"),
    *("lfm2_vl", "llama", "llama4", "llama4_text", "llava", "llava_next", "llava_onevision", "mamba", "minicpm3"),
    *("minimax_m2", "ministral", "ministral3", "mistral", "mistral3", "mistral4", "mixtral", "mllama", "modernbert"),
    *("modernbert-decoder", "molmo2", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "paligemma", "phi"),
    *("phi3", "phimoe", "qwen2", "qwen2_5_vl", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_5", "qwen3_5_moe"),
    *("qwen3_5_text", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe", "roberta", "seed_oss", "smollm3"),
    *("smolvlm", "solar_open", "stablelm", "starcoder2", "t5", "vaultgemma", "vit", "voxtral", "xlm-roberta"),
    "youtu",
)
_TINY: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "sliding_window": 5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_PER_LAYER = {**_MIXED, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 640}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_LATE_WINDOWS = {"use_sliding_window": True, "max_window_layers": 2}
_CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _LATENT),
    "mistral4": {**_LATENT, "head_dim": 16, "qk_head_dim": 16},
    **dict.fromkeys(("gemma3_text", "ministral"), _MIXED),
    **dict.fromkeys(("qwen3_5_text", "qwen3_next"), _LINEAR),
    **dict.fromkeys(("qwen2", "qwen3"), _LATE_WINDOWS),
    "gemma3n_text": {
        **_PER_LAYER,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    **dict.fromkeys(("glm4v_text", "qwen2_vl_text", "qwen2_5_vl_text"), _SECTIONS),
    "glm4v_moe_text": {**_SECTIONS, "head_dim": 16},
    "gemma4_text": {**_PER_LAYER, "global_head_dim": 16},
}
_OTHER_PARTS = {"aya_vision": {"vision_config": {"num_attention_heads": 16}}}  # transformers' own default is invalid


class Row(NamedTuple):
    """One family: how it runs, why it is not packed, and its largest error relative to the largest state."""

    kind: str
    runs: str
    reason: str
    error: float | None


def tiny_config(kind: str) -> Any:
    """Return the configuration of a tiny model of a family; a composite's parts beside the text have usual sizes."""
    usual = AutoConfig.for_model(kind)
    text = text_config(usual).model_type
    settings = {**_TINY, **_CHANGES.get(text, {})}
    if text_config(usual) is not usual:
        parts = {"text_config": {**settings, "model_type": text}, **_OTHER_PARTS.get(kind, {})}
        return AutoConfig.for_model(kind, **parts)
    return AutoConfig.for_model(kind, **({} if kind in ("bart", "t5", "vit") else settings))


@torch.no_grad()
def measure(kind: str) -> Row:
    """Run a tiny random model as dmoerm does and as transformers does, with windows shorter than the texts."""
    if reason := refused_reason(tiny_config(kind)):
        return Row(kind, "refused", reason, None)
    config = text_config(tiny_config(kind))
    torch.manual_seed(0)
    exact = AutoModel.from_config(config, attn_implementation=_eager(config)).eval().float()
    for parameter in exact.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    config = text_config(tiny_config(kind))
    part = empty_part(config, config.num_hidden_layers)
    part.load_state_dict(exact.state_dict(), assign=True)
    part.eval()
    inputs = _texts()
    expected = _separately(exact, inputs)
    splits = range(config.num_hidden_layers) if is_packed(config) else [0]
    error = max(_error(part, layer, inputs, expected) for layer in splits)
    reason = unpacked_reason(config)
    return Row(kind, "fallback" if reason else "packed", reason or "", error)


def _eager(config: Any) -> str | None:
    """Return `eager`, with which transformers computes capped logits and sinks."""
    return "eager" if is_packed(config) else None


def _texts() -> Packed:
    packing = Packing([9, 4, 13], [5, 1, 8, 3, 7, 2], [1, 0, 1, 2, 0, 1])
    return Packed(torch.randint(3, 640, (52,), generator=torch.Generator().manual_seed(1)), packing)


def _separately(model: Any, inputs: Packed) -> Tensor:
    """Return the states (T, d) of each prompt and each response after its prompt, one text at a time."""
    queries = inputs.split()
    prompts = [prompt for prompt, _ in queries]
    responses = inputs.tokens[inputs.packing.prompt_tokens :].split(inputs.packing.responses)
    states = [model(input_ids=prompt[None]).last_hidden_state[0] for prompt in prompts]
    for q, response in zip(inputs.packing.owner, responses, strict=True):
        text = torch.cat([prompts[q], response])[None]
        states.append(model(input_ids=text).last_hidden_state[0, len(prompts[q]) :])
    return torch.cat(states)


def _error(part: Any, layer: int, inputs: Packed, expected: Tensor) -> float:
    """Return the largest relative error over all ways of running the last layer."""
    packing, (trunk, branch) = inputs.packing, split_layers(part, layer)
    hidden = inputs if trunk is None else inputs._replace(tokens=run(trunk, inputs)[0])
    wanted = {"all": expected, "responses": expected[packing.prompt_tokens :], "last": expected[packing.last]}
    errors = [(run(branch, hidden, name)[0] - states).abs().max() for name, states in wanted.items()]  # pyright: ignore
    return float(max(errors) / expected.abs().max())


INTRODUCTION = """# Backbones

`backbone.path` is a folder or hub name of a text model. How it runs depends on its family:

* **packed**: its layers run one by one on packed tokens. A prompt is computed once for all its responses, and the
  first layers are a trunk that all tasks share. Sliding windows and rotary embeddings by layer type, capped logits,
  attention sinks and fused projections are supported.
* **fallback**: its own forward runs, with one padded row per response. It is slower and has no trunk: `branch_layer`
  is 0, and `router.kind` must be `own`: a copy of the backbone that is fine-tuned, with other settings than a linear
  router (below). A tokenizer without a chat template, as encoders have, also needs `encoding.template: plain`.
* **refused**: it does not give the states of a text, or they change when the text is padded.

A composite of several models, such as Gemma 3 with images, is used without its other parts: its text model runs.
Loading builds the other parts too; for Gemma 3n this needs the package `timm`.

```bash
dmoerm models check Qwen/Qwen3-0.6B --tasks 5        # how it runs, LoRA targets, memory; reads config.json only
dmoerm models check Qwen/Qwen3-8B --set backbone.quantization=4bit    # memory with layers in 4 bits (base: frozen)
```

```bash
dmoerm train fast --set backbone.path=answerdotai/ModernBERT-base --set encoding.template=plain --set router.kind=own \\
    --set router.learning_rate=2e-5 --set router.epochs=3 --set router.weight_decay=0 \\
    --set 'data.files=[mine.jsonl]' --set output=runs/modernbert
```

`phase2.lora.targets` are by default `q_proj` and `v_proj`. A family without these layers gets the targets that PEFT
lists for it, or its layers with other usual names, such as `qkv_proj` of Phi-4 or `Wqkv` of ModernBERT. GPT-2 has
none: set `phase2.fit` to `exact`. A name that you set and that no linear layer of the branch has is an error.

## Start from a reward model

A backbone may be a reward model itself: a `ForSequenceClassification` model with one label and a linear head `score`,
such as Skywork-Reward-V2. Then the general model starts from its head: before training its scores are the reward
model's, with the general model's calibration. With `fit: trained`, training continues from there.
With `fit: exact`, the penalty pulls toward these weights instead of 0 where that predicts held-out pairs better. This
needs `encoding.pooling` `both` or `last`, all layers, and a padding token that does not end a turn,
since transformers reads the score before the padding. `backbone.reward_head: false` starts from a new head.

A reward model with another head, such as the pooler and `classifier` of DeBERTa, is refused;
`backbone.reward_head: false` uses its body. A model of another class, such as ArmoRM's
`LlamaForRewardModelWithGating`, is loaded as a backbone without its head (its weights were not tried).

## Families

Measured by `python tools/backbones_page.py` with transformers {version}: random models of width 32 with 4 layers in
float32, windows of 5 tokens, texts of up to 16. The largest difference from transformers' forward on single texts, over
all splits of {count} families, is {error:.0e} of the largest state.

**Packed** ({packed}): {names}.

| not packed, because | families |
|---|---|
"""


def page(rows: list[Row]) -> str:
    """Return the text of docs/backbones.md."""
    packed = [f"`{row.kind}`" for row in rows if row.runs == "packed"]
    errors = [row.error for row in rows if row.error is not None]
    facts: dict[str, Any] = {"packed": len(packed), "names": ", ".join(packed), "count": len(errors)}
    text = INTRODUCTION.format(version=transformers.__version__, error=max(errors), **facts)
    for runs in ("fallback", "refused"):
        for reason in sorted({row.reason for row in rows if row.runs == runs}):
            kinds = ", ".join(f"`{row.kind}`" for row in rows if (row.runs, row.reason) == (runs, reason))
            text += f"| {runs}: {reason} | {kinds} |\n"
    return text


def main() -> None:
    """Measure all families, or print those that are named, and write the page."""
    warnings.filterwarnings("ignore")
    rows = []
    for kind in sys.argv[1:] or FAMILIES:
        rows.append(measure(kind))
        print(*rows[-1], flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
