"""The settings of the policy and of its optimization."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dmoerm.config import LearningRate


class _Strict(BaseModel):
    """Frozen settings that refuse unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


PPO_UPDATES = 4
"""Updates of policy and critic per batch of samples in PPO."""


class PolicyConfig(_Strict):
    """The policy before reinforcement learning: a small language model fine-tuned on the testbed's text.

    The default is a Llama of about 10 million parameters (embeddings included) over a byte-level BPE of that text.
    """

    path: str | None = None
    """A Hugging Face folder or hub name to start from; None: a random model of the shape below."""
    vocabulary: int = Field(default=3072, ge=300)
    """Most entries of the byte-level BPE. This and the shape below are ignored if `path` is given."""
    hidden_size: int = Field(default=512, ge=8)
    """Width of the hidden states."""
    intermediate_size: int = Field(default=1024, ge=8)
    """Width of the feed-forward layers."""
    layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    heads: int = Field(default=8, ge=1)
    """Attention heads."""
    key_value_heads: int = Field(default=2, ge=1)
    """Heads of keys and values; fewer make sampling faster."""
    prompts_per_task: int = Field(default=200, ge=1)
    """Testbed prompts of each task to fine-tune on."""
    responses: int = Field(default=8, ge=1)
    """Testbed responses to each prompt; long ones are left out (see `max_response_tokens`)."""
    max_response_tokens: int = Field(default=80, ge=2)
    """Length of the longest response to fine-tune on, with its end token: the policy learns to end within it."""
    epochs: float = Field(default=3.0, ge=0)
    """Passes over the text; 0: no fine-tuning."""
    batch_size: int = Field(default=32, ge=1)
    """Responses in one optimizer step."""
    learning_rate: LearningRate = 1e-3
    """AdamW's peak learning rate; about 2e-5 suits a pretrained model."""
    bf16: bool | None = None
    """Fine-tune in bfloat16, with weights kept in float32; None: if the processor supports it."""
    seed: int = 0
    """Seed of the initial weights, the text and its order."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> PolicyConfig:
        if self.hidden_size % (2 * self.heads) or self.heads % self.key_value_heads:
            raise ValueError("hidden_size must be an even multiple of heads, and heads a multiple of key_value_heads")
        return self

    @property
    def key(self) -> str:
        """A name of these settings: equal settings have the same key."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class RLConfig(_Strict):
    """Settings of one run of policy optimization and of its measurements."""

    algorithm: Literal["rloo", "grpo", "ppo"] = "rloo"
    """REINFORCE leave-one-out (arXiv 2402.14740) or GRPO (arXiv 2402.03300) with TRL's defaults, or PPO with a critic
    (arXiv 1707.06347)."""
    steps: int = Field(default=150, ge=1)
    """Batches of samples. Each is used for one update, by PPO for four."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts in one step."""
    generations: int = Field(default=4, ge=2)
    """Responses to each prompt of a step."""
    learning_rate: LearningRate = 5e-5
    """AdamW's learning rate, constant after ten steps of warm-up."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty: normalized reward per nat. RLOO subtracts the penalty from a response's reward, PPO
    from each token's reward; GRPO adds each token's estimate to that token's loss. 0: no penalty and no pass of the
    initial policy."""
    max_new_tokens: int = Field(default=80, ge=1)
    """Longest response in tokens."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Subtracted from the normalized reward of a response that does not end within `max_new_tokens`, as readers mind a
    text that breaks off. Measurements are without it."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature in training and measurement; KL is measured for the policy at this temperature."""
    seed: int = 0
    """Seed of the prompts' order and of the samples."""
    measure_every: int = Field(default=10, ge=1)
    """Steps between measurements; the first is before the first step, the last after the last step."""
    held_out: int = Field(default=64, ge=1)
    """Prompts for measurements, never for training; the same for every seed."""
    samples: int = Field(default=2, ge=1)
    """New samples for each held-out prompt at every measurement."""
    checkpoint_every: int = Field(default=25, ge=1)
    """Steps between checkpoints, from which a stopped run resumes."""
    scale_prompts: int = Field(default=64, ge=1)
    """Training prompts on which the initial policy's rewards are measured for normalization, with `generations` samples
    each."""
    bf16: bool | None = None
    """Sample and train in bfloat16, with weights kept in float32; None: if the processor supports it.
    Measurements are always in float32."""

    @property
    def updates(self) -> int:
        """Optimizer steps per batch of samples."""
        return PPO_UPDATES if self.algorithm == "ppo" else 1
