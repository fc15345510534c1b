"""Writes a data set as verl reads it, with what the reward function needs: the prompt inside `extra_info`.

    python examples/verl/prepare.py prompts.jsonl train.parquet

Rows of the input have `prompt` (a text or chat messages) and, where it is known, `task`.
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import load_dataset


def row_for_verl(row: dict[str, Any], index: int) -> dict[str, Any]:
    """verl's columns; `reward_model` is verl's name for how a row is judged, and its ground truth is not needed."""
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
