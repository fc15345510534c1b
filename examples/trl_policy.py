"""Optimize a policy against a DMoERM with TRL's GRPO or RLOO.

    pip install trl
    python examples/trl_policy.py --reward runs/demo/model                 # the model in this process
    dmoerm serve runs/demo/model &
    python examples/trl_policy.py --reward http://127.0.0.1:8000           # the same through a server

Without `--prompts FILE`, they are the training prompts of the demo. The file holds JSON Lines with `prompt` (a text or
chat messages) and optionally `task`. TRL logs the reward, `task/TASK`, `TASK/CAPABILITY` and `uncertainty`.
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset, load_dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from dmoerm.config import load_config
from dmoerm.data.splits import load_splits
from dmoerm.integrations.trl import reward_function
from dmoerm.schema import Prompt

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def demo_prompts() -> Dataset:
    """Return the training prompts of the demo as chat messages."""
    groups = load_splits(load_config("demo")).train
    return Dataset.from_list([{"task": group.task, "prompt": as_messages(group.prompt)} for group in groups])


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """Return chat messages, which TRL renders with the policy's template."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [m.model_dump() for m in prompt]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", required=True, help="checkpoint folder, hub name or URL of a reward server")
    parser.add_argument("--policy", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub name")
    parser.add_argument("--prompts", help="JSON Lines file (default: the demo's prompts)")
    parser.add_argument("--algorithm", choices=TRAINERS, default="grpo")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256, help="maximum number of tokens per completion")
    parser.add_argument("--output", default="runs/trl")
    options = parser.parse_args()

    trainer_class, settings_class = TRAINERS[options.algorithm]
    settings = settings_class(
        output_dir=options.output,
        max_steps=options.steps,
        max_completion_length=options.tokens,
        per_device_train_batch_size=16,
        num_generations=4,
        learning_rate=1e-6,
        beta=0.05,
        logging_steps=1,
        bf16=torch.cuda.is_available(),
        report_to="none",
    )
    trainer = trainer_class(
        model=options.policy,
        reward_funcs=reward_function(options.reward),
        args=settings,
        train_dataset=load_dataset("json", data_files=options.prompts)["train"] if options.prompts else demo_prompts(),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
