"""The native format, and rows whose responses have grades: UltraFeedback, HelpSteer, SHP, KTO and the paper's data."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from ...errors import DataError
from ...schema import Group
from ...taxonomy import load_taxonomy
from ..values import Row, alternate, as_name, checked, conversation, grade, messages, need, number, parsed
from . import Format, column, columns, each, grades, optional


def _native(row: Row) -> dict[str, Any]:
    """Read a native row; a query's only response may be in `response` or `completion`.

    Parquet and `datasets` write all columns and capabilities of a file into every row, so null means absent. In a CSV
    file, lists and objects are written as JSON.
    """
    fields = {name: value for name, value in row.items() if value is not None}
    nested = ("responses", "scores", "ranks", "capabilities", "annotators")
    fields |= {name: parsed(fields[name]) for name in nested if name in fields}
    if isinstance(fields.get("prompt"), list | tuple):
        fields["prompt"] = messages(fields["prompt"], "prompt")
    for name in ("capabilities", "annotators"):
        if isinstance(fields.get(name), dict):
            fields[name] = {label: grades for label, grades in fields[name].items() if grades is not None}
    if isinstance(fields.get("id"), int):
        fields["id"] = str(fields["id"])
    for name in ("response", "completion"):
        if "responses" not in fields and isinstance(fields.get(name), str):
            fields["responses"] = [fields[name]]
    return fields


# --- published data ------------------------------------------------------------------------------------------------


def _ultrafeedback(row: Row) -> dict[str, Any]:
    """Read an UltraFeedback row: completions with an overall score, and ratings that become capability grades.

    The score is `overall_score` if every completion has it, else `fine-grained_score` if every completion has that. If
    only some completions have a score, the others are left out. "N/A" ratings are missing grades.
    """
    completions = need(row, "completions", list[dict])
    overall, fine = (
        [grade(entry.get(name), f"completions.{i}.{name}") for i, entry in enumerate(completions)]
        for name in ("overall_score", "fine-grained_score")
    )
    scores = fine if None in overall and None not in fine else overall
    ratings: dict[str, list[float | None]] = {}
    for i, entry in enumerate(completions):
        annotations = entry.get("annotations") or {}
        for name, annotation in checked(annotations, f"completions.{i}.annotations", dict[str, dict | None]).items():
            rating = grade((annotation or {}).get("Rating"), f"completions.{i}.annotations.{name}.Rating")
            ratings.setdefault(name, [None] * len(completions))[i] = rating
    fields = {} if set(scores) <= {None} else {"scores": scores}
    return fields | {"capabilities": {name: each for name, each in ratings.items() if set(each) != {None}}}


def _helpsteer_turns(value: Any, field: str) -> Any:
    """Split HelpSteer 2's text of a conversation at its `<extra_id_1>User` and `<extra_id_1>Assistant` lines."""
    text = checked(value, field)
    first, *rest = re.split(r"\s*<extra_id_1>(User|Assistant)\n", text)
    if not rest:
        return text
    turns = [{"role": "user", "content": first}] if first.strip() else []
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return turns + [{"role": speaker.lower(), "content": content} for speaker, content in pairs]


def _halves(value: Any, field: str) -> list[float]:
    """Return scores that differ by a preference from −3 (the first response is much better) to 3."""
    preference = number(value, field)
    return [-preference / 2, preference / 2]


def _single_preferences(value: Any, field: str) -> dict[str, Any]:
    entries = checked(value, field, list[dict])
    people = [_halves(need(entry, "score", Any), f"{field}.score") for entry in entries]
    return {"overall": [list(grades) for grades in zip(*people, strict=True)]}


def _shp_ranks(value: Any, field: str) -> list[int]:
    if str(value) not in ("0", "1"):
        raise DataError("must be 0 or 1", field=field, value=value, hint="1: A is preferred, 0: B is")
    return [1, 2] if str(value) == "1" else [2, 1]


def _completion(value: Any, field: str) -> str:
    """Return a completion, which may be the assistant's only message."""
    if isinstance(value, str):
        return value
    turns = messages(value, field)
    if len(turns) != 1 or turns[0].role != "assistant":
        hint = "give a text, or one message of the assistant"
        raise DataError("must be one answer", field=field, value=value, hint=hint)
    return turns[0].text


def _truth(value: Any, field: str) -> float:
    scores = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
    score = scores.get(str(value).strip().lower())
    if score is None:
        raise DataError("must be true or false", field=field, value=value, hint="true: the completion is good")
    return score


def _mtmc(row: Row) -> dict[str, Any]:
    """Read a row of mtmc-rlhf, the paper's data: a conversation, candidates for its last turn and their ranks.

    `label` is one of the paper's tasks, in Chinese or in English. Any other label means no task, so the router decides.
    """
    user = [row["src"]] if isinstance(row.get("src"), str) else need(row, "src", list[str])
    model = need(row, "tgt", list[str]) if row.get("tgt") else []
    if len(model) != len(user) - 1:
        hint = "give the model's turns but the last: one fewer than src"
        raise DataError(f"has {len(model)} turns where src has {len(user)}", field="tgt", hint=hint)
    fields: dict[str, Any] = {"prompt": alternate(user, model) if model else user[0]}
    if row.get("rank") is not None:
        fields["ranks"] = [number(rank, f"rank.{index}") for index, rank in enumerate(need(row, "rank", list))]
    task = _paper_tasks().get(str(row.get("label", "")).strip())
    return fields | ({"task": task} if task else {})


@cache
def _paper_tasks() -> dict[str, str]:
    tasks = load_taxonomy("paper-zh").tasks
    return {task.title: name for name, task in tasks.items()} | {name: name for name in tasks}


FORMATS = (
    Format(
        "native",
        needs={"prompt", "responses"},
        compute=_native,
        also=Group.model_fields.keys() | {"response", "completion"},
        order=0,
        handwritten=True,
        native=True,
    ),
    Format(
        "ultrafeedback",
        needs={"instruction", "completions"},
        fields={"prompt": column("instruction"), "responses": each("completions", "response")},
        compute=_ultrafeedback,
    ),
    Format(
        "helpsteer",  # 1 and 2: one graded response a row
        needs={"prompt", "response", "helpfulness"},
        fields={
            "prompt": column("prompt", _helpsteer_turns),
            "responses": columns("response"),
            "scores": columns("helpfulness", convert=number),
            "capabilities": grades("correctness", "coherence", "complexity", "verbosity"),
        },
        one_response=True,
    ),
    Format(
        "helpsteer3",
        needs={"context", "response1", "response2"},
        fields={
            "prompt": column("context", conversation),
            "responses": columns("response1", "response2"),
            "task": optional("domain", as_name),
            "scores": optional("overall_preference", _halves),
            "annotators": optional("individual_preference", _single_preferences),
        },
    ),
    Format(
        "shp",
        needs={"history", "human_ref_A", "human_ref_B", "labels"},
        fields={
            "prompt": column("history"),
            "responses": columns("human_ref_A", "human_ref_B"),
            "ranks": column("labels", _shp_ranks),
            "task": optional("domain", lambda v, name: as_name(re.sub(r"_(train|validation|test)$", "", str(v)), name)),
        },
    ),
    Format(
        "kto",
        needs={"prompt", "completion", "label"},
        fields={
            "prompt": column("prompt", conversation),
            "responses": columns("completion", convert=_completion),
            "scores": columns("label", convert=_truth),
        },
        one_response=True,
    ),
    Format(
        "mtmc",
        needs={"src", "response", "rank"},
        fields={"responses": column("response", lambda value, field: checked(value, field, list[str]))},
        compute=_mtmc,
        also={"tgt", "label"},
    ),
)
