"""The native format, and rows whose responses have grades: UltraFeedback, HelpSteer, SHP, KTO and the paper's data."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from ...errors import DataError
from ...schema import Group
from ...taxonomy import load_taxonomy
from ..values import (
    Row,
    alternate,
    answer_text,
    as_name,
    as_text,
    conversation,
    grade,
    keep_responses,
    list_in,
    mapping,
    mappings_in,
    messages,
    need,
    number,
    parsed,
    texts_in,
)
from . import Format, RawExample, column, columns, each, grades, optional

# --- native --------------------------------------------------------------------------------------------------------


def _native(row: Row) -> RawExample:
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
    return RawExample(fields)


# --- graded responses ----------------------------------------------------------------------------------------------


def _ultrafeedback(row: Row) -> RawExample:
    """Read an UltraFeedback row: completions with an overall score, and ratings that become capability grades.

    The score is `overall_score` if every completion has it, else `fine-grained_score`. If only some completions have a
    score, the others are left out. "N/A" ratings are missing grades.
    """
    completions = mappings_in(row, "completions")
    fields = {"capabilities": _ratings(completions)}
    fields["responses"] = each("completions", "response").read(row)
    overall, fine = (
        [grade(entry.get(name), f"completions.{i}.{name}") for i, entry in enumerate(completions)]
        for name in ("overall_score", "fine-grained_score")
    )
    scores = fine if None in overall and None not in fine else overall
    kept = [index for index, score in enumerate(scores) if score is not None]
    if not kept:
        return RawExample(fields)
    reasons = ("response: no overall score",) * (len(scores) - len(kept))
    return RawExample(keep_responses(fields | {"scores": scores}, kept), skipped=reasons)


def _ratings(completions: list[Row]) -> dict[str, Any]:
    annotations = [
        mapping(entry.get("annotations") or {}, f"completions.{i}.annotations") for i, entry in enumerate(completions)
    ]
    graded = {}
    for name in dict.fromkeys(name for annotation in annotations for name in annotation):
        field = f"annotations.{name}"
        entries = [annotation.get(name) for annotation in annotations]
        graded[name] = [
            None if entry is None else grade(mapping(entry, field).get("Rating"), f"{field}.Rating")
            for entry in entries
        ]
    return {name: values for name, values in graded.items() if any(value is not None for value in values)}


def _helpsteer_turns(value: Any, field: str) -> Any:
    """Split HelpSteer 2's text of a conversation at its `<extra_id_1>User` and `<extra_id_1>Assistant` lines."""
    text = as_text(value, field)
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
    people = [_halves(need(entry, "score"), f"{field}.score") for entry in mappings_in({field: value}, field)]
    return {"overall": [list(grades) for grades in zip(*people, strict=True)]}


def _shp_ranks(value: Any, field: str) -> list[int]:
    if str(value) not in ("0", "1"):
        raise DataError("must be 0 or 1", field=field, value=value, hint="1: A is preferred, 0: B is")
    return [1, 2] if str(value) == "1" else [2, 1]


def _shp_task(value: Any, field: str) -> str:
    return as_name(re.sub(r"_(train|validation|test)$", "", as_text(value, field)))


def _task(value: Any, field: str) -> str:
    return as_name(as_text(value, field))


def _completion(value: Any, field: str) -> str:
    """Return a completion, which may be the assistant's only message."""
    if isinstance(value, str):
        return value
    turns = messages(value, field)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        hint = "give a text, or one message of the assistant"
        raise DataError("must be one answer", field=field, value=value, hint=hint)
    return answer_text(turns[0])


def _truth(value: Any, field: str) -> float:
    scores = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
    score = scores.get(str(value).strip().lower())
    if score is None:
        raise DataError("must be true or false", field=field, value=value, hint="true: the completion is good")
    return score


# --- mtmc-rlhf, the paper's data -----------------------------------------------------------------------------------


def _mtmc(row: Row) -> RawExample:
    """Read a conversation (`src`, `tgt`), candidates for its last turn and their ranks (1 is best).

    `label` is one of the paper's tasks, in Chinese or in English. Any other label means no task, so the router decides.
    """
    user = [row["src"]] if isinstance(row.get("src"), str) else texts_in(row, "src")
    model = texts_in(row, "tgt") if row.get("tgt") else []
    if len(model) != len(user) - 1:
        hint = "give the model's turns but the last: one fewer than src"
        raise DataError(f"has {len(model)} turns where src has {len(user)}", field="tgt", hint=hint)
    fields: dict[str, Any] = {"prompt": alternate(user, model) if model else user[0]}
    if row.get("rank") is not None:
        fields["ranks"] = [number(rank, f"rank.{index}") for index, rank in enumerate(list_in(row, "rank"))]
    if task := _paper_tasks().get(str(row.get("label", "")).strip()):
        return RawExample(fields | {"task": task})
    return RawExample(fields, ("label is not one of the five tasks: kept without a task, the router decides",))


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
        unsuggested={"response", "completion", "judge_labels", "scores_derived", "tools"},
        strict=True,
        origin=False,
    ),
    Format(
        "ultrafeedback",
        needs={"instruction", "completions"},
        fields={"prompt": column("instruction")},
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
            "task": optional("domain", _task),
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
            "task": optional("domain", _shp_task),
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
        fields={"responses": column("response", lambda value, field: texts_in({field: value}, field))},
        compute=_mtmc,
        also={"tgt", "label"},
    ),
)
