"""Settings of a tiny policy and a tiny run, and a rule-based reward; evidence/conftest.py has their fixtures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny import tiny_tokenizer

from dmoerm.schema import Query
from evidence.rl import PolicyConfig, RLConfig

TINY_POLICY = PolicyConfig(
    vocabulary=700,
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=2,
    key_value_heads=1,
    prompts_per_task=20,
    responses=4,
    max_response_tokens=160,
    epochs=3,
    batch_size=16,
    learning_rate=5e-3,
)


def tiny_settings(**changes: object) -> RLConfig:
    """Return the settings of a run with twelve steps."""
    settings = {
        "steps": 12,
        "prompts_per_step": 4,
        "generations": 4,
        "learning_rate": 1e-2,
        "max_new_tokens": 12,
        "measure_every": 6,
        "held_out": 10,
        "checkpoint_every": 4,
        "scale_prompts": 8,
        "missing_eos_penalty": 0.0,
    }
    return RLConfig.model_validate(settings | changes)


def count_t(queries: Sequence[Query]) -> list[list[float]]:
    """Reward each response by its number of letters t."""
    return [[float(text.lower().count("t")) for text in query.responses] for query in queries]


def write_random_policy(folder: Path) -> str:
    """Write a tiny random language model with `tiny_tokenizer` (ChatML), with the same bytes every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
