"""The policy before reinforcement learning; it is created once for its settings and then loaded.

A conversation becomes `User: …` and `Assistant: …` lines, then `Assistant:`; the response follows after a space and
ends with the end token. Fine-tuning minimizes the cross-entropy of the response's tokens, including the end token.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
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

from dmoerm.errors import CheckpointError, ConfigError
from dmoerm.io.paths import complete_folder
from dmoerm.schema import Prompt, messages_of
from evidence.rl.policy_settings import PolicyConfig
from evidence.rl.sampling import uses_bf16
from evidence.testbed import TASKS, prompts, sample_responses

END, PAD = "<|end|>", "<|pad|>"
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_WARMUP, _MAX_POSITIONS = 0.05, 1024


def render(prompt: Prompt) -> str:
    """Render the text that the policy continues, up to and including `Assistant:`."""
    messages = messages_of(prompt)
    return "".join(f"{_NAMES[message.role]}: {message.text}\n" for message in messages) + "Assistant:"


def make_policy(config: PolicyConfig, folder: Path) -> Path:
    """Create the policy of these settings with its tokenizer, unless it exists, and return its folder.

    A stopped fine-tuning resumes from its last checkpoint.

    Args:
        folder: the folder of all policies; each has a subfolder named by `config.key`.

    Raises:
        ConfigError: `config.path` is not a language model.
        CheckpointError: the policy cannot be written.
    """
    target = folder / f"policy-{config.key}"
    if (target / "config.json").is_file():
        return target
    set_seed(config.seed)
    texts = _texts(config)
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
    """Load a policy in float32 and its tokenizer, which pads on the left.

    Raises:
        ConfigError: the folder is not that of a causal language model, or the tokenizer has no end token.
    """
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


def _texts(config: PolicyConfig) -> list[tuple[str, str]]:
    """Return prompt and response texts: the first prompts of each task in the testbed's seeded order."""
    items = [item for task in TASKS for item in prompts(task, config.prompts_per_task, config.seed)]
    return [(render(i.prompt), text) for i in items for text in sample_responses(i, config.responses, config.seed)]


def _start(config: PolicyConfig, texts: Sequence[tuple[str, str]]) -> tuple[Any, PreTrainedTokenizerBase]:
    if config.path is not None:
        return load_policy(Path(config.path))
    tokenizer = _train_tokenizer(config.vocabulary, texts)
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


def _train_tokenizer(size: int, texts: Sequence[tuple[str, str]]) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((f"{prompt} {response}" for prompt, response in texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD, padding_side="left")


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
        data_collator=lambda batch: _padded(batch, int(tokenizer.pad_token_id)),  # pyright: ignore[reportArgumentType]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return _history(trainer)


def last_checkpoint(folder: Path) -> str | None:
    """Return the path of transformers' last complete checkpoint, or None; remove incomplete ones (killed run)."""
    while folder.exists() and (checkpoint := get_last_checkpoint(str(folder))):
        if (Path(checkpoint) / "trainer_state.json").exists():  # written last
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _history(trainer: Trainer) -> str:
    import json

    return json.dumps([{"step": e["step"], "loss": e["loss"]} for e in trainer.state.log_history if "loss" in e])


def _padded(batch: Sequence[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Return a batch padded on the right, (B, L) each."""
    longest = max(len(row["input_ids"]) for row in batch)
    filled = lambda name, value: torch.tensor([r[name] + [value] * (longest - len(r[name])) for r in batch])  # noqa: E731
    lengths = torch.tensor([[len(row["input_ids"])] for row in batch])
    return {
        "input_ids": filled("input_ids", pad),
        "labels": filled("labels", -100),
        "attention_mask": (torch.arange(longest) < lengths).long(),
    }
