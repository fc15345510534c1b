"""mtmc-rlhf, the paper's data: a conversation with ranked candidates for its last turn."""

from __future__ import annotations

from functools import cache
from itertools import zip_longest
from typing import Any

from ...errors import DataError
from ...taxonomy import load_taxonomy
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, list_in, number, origin, texts_in


def read_mtmc(row: Row) -> RawExample:
    """Read an mtmc-rlhf row: a conversation (`src`, `tgt`), candidates for its last turn and their ranks (1 is best).

    `label` is one of the paper's tasks, in Chinese or in English. Any other label means no task, so the router decides.
    """
    user = [row["src"]] if isinstance(row.get("src"), str) else texts_in(row, "src")
    model = texts_in(row, "tgt") if row.get("tgt") else []
    if len(model) != len(user) - 1:
        hint = "give the model's turns but the last: one fewer than src"
        raise DataError(f"has {len(model)} turns where src has {len(user)}", field="tgt", hint=hint)
    fields = origin(row) | {"prompt": _alternate(user, model), "responses": texts_in(row, "response")}
    if row.get("rank") is not None:
        fields["ranks"] = [number(rank, f"rank.{index}") for index, rank in enumerate(list_in(row, "rank"))]
    task = _paper_tasks().get(str(row.get("label", "")).strip())
    if task is None:
        return RawExample(fields, ("label is not one of the five tasks: kept without a task, the router decides",))
    return RawExample(fields | {"task": task})


@cache
def _paper_tasks() -> dict[str, str]:
    tasks = load_taxonomy("paper-zh").tasks
    return {task.title: name for name, task in tasks.items()} | {name: name for name in tasks}


def _alternate(user: list[str], model: list[str]) -> Any:
    if not model:
        return user[0]
    turns = []
    for question, answer in zip_longest(user, model):
        turns.append({"role": "user", "content": question})
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
    return turns


FORMAT = RowFormat(
    "mtmc", has("src", "response", "rank"), read_mtmc, ORIGIN | {"src", "tgt", "response", "rank", "label"}
)
