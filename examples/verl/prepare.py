"""Write a data set in verl's format, with the prompt in `extra_info` for the reward function.

    python examples/verl/prepare.py prompts.jsonl train.parquet

Input rows have `prompt` (a text or chat messages) and optionally `task`.
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import load_dataset


def row_for_verl(row: dict[str, Any], index: int) -> dict[str, Any]:
    """Return verl's columns. `reward_model` is verl's name for how a row is judged; no ground truth is needed."""
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {
        "data_source": "dmoerm",
        "prompt": messages,
        "reward_model": {"style": "model", "ground_truth": ""},
        "extra_info": {"index": index, "prompt": messages, "task": row.get("task")},
    }


def main(source: str, target: str) -> None:
    rows = load_dataset("json", data_files=source)["train"]
    rows.map(row_for_verl, with_indices=True, remove_columns=rows.column_names).to_parquet(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
