"""UltraFeedback: an instruction with rated completions."""

from __future__ import annotations

from typing import Any

from ..raw_example import (
    ORIGIN,
    RawExample,
    Row,
    RowFormat,
    as_text,
    grade,
    has,
    keep_responses,
    list_in,
    mapping,
    need,
    origin,
    text_in,
)


def read_ultrafeedback(row: Row) -> RawExample:
    """Read an UltraFeedback row: completions with an overall score, and ratings that become capability grades.

    The score is `overall_score` if every completion has it, else `fine-grained_score`. If only some completions have a
    score, the others are left out. "N/A" ratings are missing grades.
    """
    completions = [mapping(entry, f"completions.{i}") for i, entry in enumerate(list_in(row, "completions"))]
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
        mapping(entry.get("annotations") or {}, f"completions.{i}.annotations") for i, entry in enumerate(completions)
    ]
    graded: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(name for annotation in annotations for name in annotation):
        grades = [_rating(annotation.get(name), name) for annotation in annotations]
        if any(value is not None for value in grades):
            graded[name] = grades
    return graded


def _rating(annotation: Any, name: str) -> float | None:
    field = f"annotations.{name}"
    return None if annotation is None else grade(mapping(annotation, field).get("Rating"), f"{field}.Rating")


FORMAT = RowFormat(
    "ultrafeedback", has("instruction", "completions"), read_ultrafeedback, ORIGIN | {"instruction", "completions"}
)
