"""The settings of policy optimization, and the policy before it; a policy is created once for its settings.

A conversation becomes `User: …` and `Assistant: …` lines, then `Assistant:`; the response follows after a space and
ends with the end token. Fine-tuning minimizes the cross-entropy of the response's tokens, including the end token.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from dmoerm.config import LearningRate
from dmoerm.errors import CheckpointError, ConfigError
from dmoerm.io.paths import complete_folder
from dmoerm.model.backbone import resolve_dtype
from dmoerm.schema import Prompt, messages_of
from evidence.testbed import TASKS, prompts, sample_responses

END, PAD = "<|end|>", "<|pad|>"
PPO_UPDATES = 4
"""Updates of policy and critic per batch of samples in PPO."""
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_WARMUP, _MAX_POSITIONS = 0.05, 1024


class _Strict(BaseModel):
    """Frozen settings that refuse unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class PolicyConfig(_Strict):
    """The policy before reinforcement learning: a small language model fine-tuned on the testbed's text.

    The default is a Llama of about 10 million parameters (embeddings included) over a byte-level BPE of that text.
    """

    path: str | None = None
    """A Hugging Face folder or hub name to start from; null starts from a random model of the shape below."""
    vocabulary: int = Field(default=3072, ge=300)
    """Maximum number of entries of the byte-level BPE. This and the shape below are ignored if `path` is given."""
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
    """Fine-tune in bfloat16 with float32 weights; null does so if the processor supports it."""
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
    """Sample and train in bfloat16 with float32 weights; null does so if the processor supports it.
    Measurements are always in float32."""

    @property
    def updates(self) -> int:
        """Optimizer steps per batch of samples."""
        return PPO_UPDATES if self.algorithm == "ppo" else 1


def uses_bf16(bf16: bool | None) -> bool:
    """Return whether to compute in bfloat16; None asks the processor."""
    return resolve_dtype("auto") == torch.bfloat16 if bf16 is None else bf16


def render(prompt: Prompt) -> str:
    """Render the text that the policy continues, up to and including `Assistant:`."""
    messages = messages_of(prompt)
    return "".join(f"{_NAMES[message.role]}: {message.text}\n" for message in messages) + "Assistant:"


def make_policy(config: PolicyConfig, folder: Path) -> Path:
    """Create the policy of these settings with its tokenizer, unless it exists, and return its folder.

    A stopped fine-tuning resumes from its last checkpoint. `folder` is the folder of all policies.
    """
    target = folder / f"policy-{config.key}"
    if (target / "config.json").is_file():
        return target
    set_seed(config.seed)
    items = [item for task in TASKS for item in prompts(task, config.prompts_per_task, config.seed)]
    texts = [(render(i.prompt), text) for i in items for text in sample_responses(i, config.responses, config.seed)]
    model, tokenizer = _start(config, texts)
    checkpoints = folder / f"policy-{config.key}.checkpoints"
    metrics = _fine_tune(model, tokenizer, _rows(tokenizer, texts, config), config, checkpoints)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id  # pyright: ignore
    try:
        with complete_folder(target) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            (unfinished / "policy.json").write_text(config.model_dump_json(indent=1))
            (unfinished / "fine_tuning.json").write_text(metrics)
    except OSError as error:
        raise CheckpointError(
            f"{target}: the policy cannot be written: {error}; free some space and run again"
        ) from None
    shutil.rmtree(checkpoints, ignore_errors=True)
    return target


def load_policy(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a policy in float32 and its tokenizer, which pads on the left."""
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"policy.path: {folder} is not a causal language model: {reason}; give another folder"
        ) from None
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"policy.path: the tokenizer of {folder} has no end token; use a model with one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _start(config: PolicyConfig, texts: Sequence[tuple[str, str]]) -> tuple[Any, PreTrainedTokenizerBase]:
    if config.path is not None:
        return load_policy(Path(config.path))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f"{prompt} {response}" for prompt, response in texts), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD, padding_side="left")
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=_MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
    )
    return LlamaForCausalLM(shape), tokenizer


def _rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]], config: PolicyConfig
) -> list[dict[str, list[int]]]:
    """Return token ids and labels of the texts with short enough responses; -100 marks tokens without loss."""
    rows = []
    starts = tokenizer([prompt for prompt, _ in texts])["input_ids"]
    ends = tokenizer([f" {response}" for _, response in texts], add_special_tokens=False)["input_ids"]
    for start, end in zip(starts, ends, strict=True):  # pyright: ignore[reportArgumentType]
        if len(end) < config.max_response_tokens:
            answer = [*end, tokenizer.eos_token_id]
            rows.append({"input_ids": [*start, *answer], "labels": [-100] * len(start) + answer})
    if not rows:
        raise ConfigError(
            f"policy.max_response_tokens: no response is shorter than {config.max_response_tokens} tokens; raise it"
        )
    return rows


def _fine_tune(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: list[Any], config: PolicyConfig, folder: Path
) -> str:
    """Fine-tune the model in place; return the history of the loss as JSON."""
    if config.epochs == 0:
        return "[]"
    total = max(round(-(-len(rows) // config.batch_size) * config.epochs), 1)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=total,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(_WARMUP * total),
        weight_decay=0.01,
        save_strategy="steps",
        save_steps=max(total // 5, 1),
        save_total_limit=1,
        logging_steps=max(total // 20, 1),
        train_sampling_strategy="group_by_length",
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        bf16=uses_bf16(config.bf16),
        report_to="none",
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorForSeq2Seq(tokenizer),  # pads ids and labels
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return json.dumps([{"step": e["step"], "loss": e["loss"]} for e in trainer.state.log_history if "loss" in e])


def last_checkpoint(folder: Path) -> str | None:
    """Return the path of transformers' last complete checkpoint, or None; remove incomplete ones (killed run)."""
    while folder.exists() and (checkpoint := get_last_checkpoint(str(folder))):
        if (Path(checkpoint) / "trainer_state.json").exists():  # written last
            return checkpoint
        shutil.rmtree(checkpoint)
    return None
