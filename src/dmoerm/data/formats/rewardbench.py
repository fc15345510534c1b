"""RewardBench 1 and 2 and RM-Bench: one or more chosen and rejected responses."""

from __future__ import annotations

from typing import Any

from ..messages import prompt_in
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, as_text, origin, task_name, texts_in


def read_rewardbench(row: Row) -> RawExample:
    """Read a row of RewardBench 1 (one chosen, one rejected), RewardBench 2 or RM-Bench (lists of both).

    All chosen responses share rank 1, all rejected rank 2; `subset` (RM-Bench: `domain`) is the task.
    """
    chosen, rejected = _one_or_more(row, "chosen"), _one_or_more(row, "rejected")
    fields = origin(row)
    for name in ("domain", "subset"):
        if row.get(name) is not None:
            fields["task"] = task_name(as_text(row[name], name))
    fields["prompt"] = prompt_in(row, "prompt")
    fields["responses"] = chosen + rejected
    fields["ranks"] = [1] * len(chosen) + [2] * len(rejected)
    return RawExample(fields)


def _one_or_more(row: Row, field: str) -> list[str]:
    return [row[field]] if isinstance(row.get(field), str) else texts_in(row, field)


def _is_rewardbench(row: Row) -> bool:
    if not all(name in row for name in ("prompt", "chosen", "rejected")):
        return False
    chosen: Any = row["chosen"]
    if isinstance(chosen, str):
        return "subset" in row
    return isinstance(chosen, list | tuple) and bool(chosen) and isinstance(chosen[0], str)


FORMAT = RowFormat(
    "rewardbench", _is_rewardbench, read_rewardbench, ORIGIN | {"prompt", "chosen", "rejected", "subset", "domain"}
)
