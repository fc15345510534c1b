"""Row formats that grade or rank single responses: mtmc-rlhf, UltraFeedback, HelpSteer 1, 2 and 3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from itertools import zip_longest
from typing import Any

from ..errors import DataError
from ..taxonomy import load_taxonomy
from .raw_example import (
    RawExample,
    Row,
    as_text,
    grade,
    keep_responses,
    list_in,
    messages,
    need,
    number,
    origin,
    task_name,
    text_in,
    texts_in,
)

HELPSTEER_CAPABILITIES = ("correctness", "coherence", "complexity", "verbosity")
"""HelpSteer's grades other than `helpfulness`, which is the overall score."""

_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


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


def read_ultrafeedback(row: Row) -> RawExample:
    """Read an UltraFeedback row: completions with an overall score, and ratings that become capability grades.

    The score is `overall_score` if every completion has it, else `fine-grained_score`. If only some completions have a
    score, the others are left out. "N/A" ratings are missing grades.
    """
    completions = [_mapping(entry, f"completions.{i}") for i, entry in enumerate(list_in(row, "completions"))]
    responses = [as_text(need(entry, "response"), f"completions.{i}.response") for i, entry in enumerate(completions)]
    fields = {**origin(row), "prompt": text_in(row, "instruction"), "responses": responses}
    fields["capabilities"] = _ratings(completions)
    scores = _overall_scores(completions)
    kept = [index for index, score in enumerate(scores) if score is not None]
    if not kept:
        return RawExample(fields)
    reasons = ("response: no overall score",) * (len(scores) - len(kept))
    return RawExample(keep_responses(fields | {"scores": scores}, kept), skipped=reasons)


def _overall_scores(completions: list[Row]) -> list[float | None]:
    overall, fine = (
        [grade(entry.get(name), f"completions.{i}.{name}") for i, entry in enumerate(completions)]
        for name in ("overall_score", "fine-grained_score")
    )
    return fine if None in overall and None not in fine else overall


def _ratings(completions: list[Row]) -> dict[str, list[float | None]]:
    annotations = [
        _mapping(entry.get("annotations") or {}, f"completions.{i}.annotations") for i, entry in enumerate(completions)
    ]
    graded: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(name for annotation in annotations for name in annotation):
        grades = [_rating(annotation.get(name), name) for annotation in annotations]
        if any(value is not None for value in grades):
            graded[name] = grades
    return graded


def _rating(annotation: Any, name: str) -> float | None:
    field = f"annotations.{name}"
    return None if annotation is None else grade(_mapping(annotation, field).get("Rating"), f"{field}.Rating")


def _mapping(value: Any, field: str) -> Row:
    if not isinstance(value, Mapping):
        raise DataError("must be an object", field=field, value=value, hint="write a JSON object")
    return value


def read_helpsteer(row: Row) -> RawExample:
    """Read a HelpSteer 1 or 2 row: one response, graded 0 to 4. The rows of one prompt are joined into a group.

    `helpfulness` is the overall score; correctness, coherence, complexity and verbosity are capabilities.
    """
    fields = origin(row) | {
        "prompt": _helpsteer_prompt(text_in(row, "prompt")),
        "responses": [text_in(row, "response")],
        "scores": [number(need(row, "helpfulness"), "helpfulness")],
    }
    capabilities = {name: [grade(row.get(name), name)] for name in HELPSTEER_CAPABILITIES}
    return RawExample(fields | {"capabilities": capabilities})


def _helpsteer_prompt(text: str) -> Any:
    """Split HelpSteer 2's text of a conversation at its `<extra_id_1>User` and `<extra_id_1>Assistant` lines."""
    first, *rest = _HELPSTEER_TURN.split(text)
    if not rest:
        return text
    turns = [{"role": "user", "content": first}] if first.strip() else []
    turns += [
        {"role": speaker.lower(), "content": content} for speaker, content in zip(rest[::2], rest[1::2], strict=True)
    ]
    return turns


def join_raw_examples(examples: list[RawExample]) -> RawExample:
    """Join single responses to one prompt into one example; `id`, `task` and `source` are those of the first."""
    fields = dict(examples[0].fields)
    fields["responses"] = [text for example in examples for text in example.fields["responses"]]
    fields["scores"] = [score for example in examples for score in example.fields["scores"]]
    names = examples[0].fields["capabilities"]
    joined = {name: [grade for e in examples for grade in e.fields["capabilities"][name]] for name in names}
    fields["capabilities"] = {name: grades for name, grades in joined.items() if any(g is not None for g in grades)}
    return RawExample(
        fields, tuple(n for e in examples for n in e.notes), tuple(r for e in examples for r in e.skipped)
    )


def read_helpsteer3(row: Row) -> RawExample:
    """Read a HelpSteer 3 row: `overall_preference` from −3 (response1 is much better) to 3; `domain` is the task.

    The scores differ by the preference. `individual_preference` has the grades of the annotators.
    """
    context = need(row, "context")
    fields = origin(row) | {
        "prompt": context if isinstance(context, str) else messages(context, "context"),
        "responses": [text_in(row, "response1"), text_in(row, "response2")],
    }
    if row.get("domain"):
        fields["task"] = task_name(text_in(row, "domain"))
    if row.get("overall_preference") is not None:
        fields["scores"] = _halves(number(row["overall_preference"], "overall_preference"))
    people = [
        _halves(number(need(_mapping(entry, "individual_preference"), "score"), "individual_preference.score"))
        for entry in (list_in(row, "individual_preference") if row.get("individual_preference") else [])
    ]
    if people:
        fields["annotators"] = {"overall": [list(grades) for grades in zip(*people, strict=True)]}
    return RawExample(fields)


def _halves(preference: float) -> list[float]:
    return [-preference / 2, preference / 2]
