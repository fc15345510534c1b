"""Optimises a policy against a DMoERM by TRL's GRPO or RLOO.

    pip install 'dmoerm[rl]'
    python examples/trl_policy.py --reward runs/demo/model                 # the model in this process
    dmoerm serve runs/demo/model &
    python examples/trl_policy.py --reward http://127.0.0.1:8000           # the same through a server

Prompts are the built-in testbed's; give `--prompts FILE`, JSON Lines with `prompt` (a text or chat messages) and, where
it is known, `task`, for your own. TRL logs the reward, `task/TASK`, `TASK/CAPABILITY` and `uncertainty`.
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset, load_dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from dmoerm import testbed
from dmoerm.integrations.trl import reward_function
from dmoerm.schema import Prompt

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def draw_prompts(per_task: int) -> Dataset:
    """Prompts of all tasks, as chat messages."""
    rows = [(task, item.prompt) for task in testbed.TASKS for item in testbed.prompts(task, per_task)]
    return Dataset.from_list([{"task": task, "prompt": as_messages(prompt)} for task, prompt in rows])


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """Chat messages, which TRL renders by the policy's own template."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [m.model_dump() for m in prompt]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", required=True, help="a model's folder or hub name, or a reward server's URL")
    parser.add_argument("--policy", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a folder or hub name")
    parser.add_argument("--prompts", help="a JSON Lines file; the testbed's unless given")
    parser.add_argument("--algorithm", choices=TRAINERS, default="grpo")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256, help="most tokens of a completion")
    parser.add_argument("--output", default="runs/trl")
    given = parser.parse_args()

    trainer_class, settings_class = TRAINERS[given.algorithm]
    settings = settings_class(
        output_dir=given.output,
        max_steps=given.steps,
        max_completion_length=given.tokens,
        per_device_train_batch_size=16,
        num_generations=4,
        learning_rate=1e-6,
        beta=0.05,
        logging_steps=1,
        bf16=torch.cuda.is_available(),
        report_to="none",
    )
    trainer = trainer_class(
        model=given.policy,
        reward_funcs=reward_function(given.reward),
        args=settings,
        train_dataset=load_dataset("json", data_files=given.prompts)["train"] if given.prompts else draw_prompts(40),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
