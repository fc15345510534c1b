"""Tiny backbones, data, settings and models, with which a whole run takes seconds. conftest.py has their fixtures."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dmoerm.config import Config
from dmoerm.schema import Group
from dmoerm.scores import Score
from evidence import testbed

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer() -> Any:
    """Return a byte-level BPE with ChatML. Its pad token is its end token, as in many real tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for group in testbed.generate(2, 2) for text in (str(group.prompt), *group.responses)]
    tokenizer.train_from_iterator([*texts, "user assistant system 你好，我今天很高兴。"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


def write_backbone(folder: Path, kind: str = "llama", **settings: Any) -> str:
    """Write a tiny random decoder of this kind with `tiny_tokenizer`, with the same bytes every time."""
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = tiny_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,  # large enough that attention changes every state
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(kind, **shape | settings)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the changes merged in, section by section."""
    merged = copy.deepcopy(settings)
    for name, value in changes.items():
        inside = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if inside else value
    return merged


TINY_TASKS = {"chitchat": ("empathy", "proactivity"), "objective_qa": ("correctness", "logic")}


def tiny_groups(prompts: int = 12) -> list[Group]:
    """Return testbed groups of two tasks with two capabilities each, labeled by simulated annotators."""
    return list(_tiny_groups(prompts))


@functools.cache
def _tiny_groups(prompts: int) -> tuple[Group, ...]:
    return tuple(
        group.model_copy(
            update={
                "capabilities": {name: group.capabilities[name] for name in TINY_TASKS[group.task]},
                "annotators": {},
                "source": None,  # otherwise tests compare with gold, on all capabilities of the testbed
            }
        )
        for group in testbed.generate(prompts, 3)
        if group.task in TINY_TASKS
    )


def write_groups(groups: Iterable[Group], path: Path) -> str:
    """Write groups in the native format and return the file's name."""
    path.write_text("".join(group.model_dump_json(exclude_none=True) + "\n" for group in groups), encoding="utf-8")
    return str(path)


HEADS: dict[str, Any] = {"base": "frozen", "phase2": {"fit": "exact"}}
"""The changes to the settings of a tiny run whose branches stay as pretrained, and whose experts are heads."""


def make_tiny_config(backbone: str, folder: Path, /, **changes: Any) -> Config:
    """Return settings of a run that takes seconds: `tiny_groups`, fully trained branches, LoRA experts of rank 2."""
    step = {"epochs": 2, "learning_rate": 1e-3, "evaluations": 2}
    own_router = changes.get("router", {}).get("kind") == "own"  # the other is fitted exactly
    base = {"fit": "exact"} if changes.get("base") == "frozen" else step
    heads = changes.get("phase2") == {"fit": "exact"}
    settings: dict[str, Any] = {
        "output": str(folder / "run"),
        "cache": str(folder / "cache"),
        "data": {"files": [write_groups(tiny_groups(), folder / "groups.jsonl")]},
        "backbone": {"path": backbone, "branch_layer": 2, "dtype": "float32"},
        "router": {**step, "epochs": 10, "learning_rate": 1e-2} if own_router else {},
        "phase0": base,
        "phase1": base,
        "phase2": {} if heads else {**step, "epochs": 1, "evaluations": 1, "lora": {"rank": 2}},
        "phase3": step | ({} if changes.get("phase3", {}).get("inputs") == "scores" else {"hidden": 8}),
    }
    return Config.model_validate(merge(settings, changes))


def make_exact_config(backbone: str, folder: Path, /, **changes: Any) -> Config:
    """Return the settings of a tiny run of the form of `frozen`: heads fitted exactly, weighted out-of-fold scores."""
    settings = make_tiny_config(backbone, folder, **HEADS).model_dump(mode="json")
    settings |= {"phase3": {"fit": "exact", "base_scores": ["per_task", "general", "all_labels"]}}
    return Config.model_validate(merge(settings, changes))


_FIRST: dict[str, Any] = {"head_first": True}  # a penalty, with which scores have an uncertainty
TRAINED: dict[str, Any] = {"phase0": _FIRST, "phase1": _FIRST}
"""The changes to the settings of a tiny run that are those of `trained_run`."""


def train_quietly(config: Config) -> Any:
    """Train without output."""
    from rich.console import Console

    from dmoerm.training import train

    return train(config, Console(quiet=True))


def make_model(config: Config) -> Any:
    """Return a model with random values for all trained weights; the tasks differ."""
    import torch

    from dmoerm.model.checkpoint import small_state
    from dmoerm.model.experts import lora_layers
    from dmoerm.taxonomy import draft_taxonomy
    from dmoerm.training.run import build_model

    model = build_model(config, draft_taxonomy(tiny_groups(2), "drafted"))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(11)
        for name, tensor in small_state(model).items():
            if "posterior." not in name:
                positive = name.endswith(("scale", "temperature"))
                tensor.uniform_(0.5, 1.5) if positive else tensor.normal_(std=0.3)
        for task in model.config.tasks:
            task_model = model.task_model(task)
            if not model.config.shared_branch:
                for parameter in task_model.base.branch.parameters():
                    parameter += torch.randn_like(parameter) * 0.05
            task_model.experts.attach(task_model.base.branch)
            for layer in lora_layers(task_model.experts).values():
                layer.lora_B.normal_(std=0.3)
        task_models = [model.task_model(task) for task in model.config.tasks]
        for posterior in (model.general_posterior, *(part.posterior for part in task_models if part.reads_base)):
            posterior.rest.uniform_(0.5, 1.5)
            posterior.basis.normal_(std=0.03)  # the variance of any embedding stays positive
    return model.requires_grad_(False).eval()


def assert_same(actual: Sequence[Score], expected: Sequence[Score], tolerance: float = 1e-4) -> None:
    """Check that scores are equal up to rounding, which differs between processors and memory layouts."""
    import pytest

    close = {"abs": tolerance, "rel": tolerance}
    assert len(actual) == len(expected)
    for score, other in zip(actual, expected, strict=True):
        assert score.task == other.task
        assert score.reward == pytest.approx(other.reward, **close)
        assert score.capabilities == pytest.approx(other.capabilities, **close)
        assert score.contributions == pytest.approx(other.contributions, **close)
        assert score.route == pytest.approx(other.route, **close)
        assert score.uncertainty == (
            other.uncertainty if other.uncertainty is None else pytest.approx(other.uncertainty, **close)
        )
