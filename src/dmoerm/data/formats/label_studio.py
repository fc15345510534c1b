"""Label Studio: tasks with annotations, as its JSON export writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..human_labels import AnnotatedRow, plain_name
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, list_in, mapping, need, origin

_SIDES = ("left", "right")
_VALUES = {"pairwise": "selected", "choices": "choices", "rating": "rating"}


def read_label_studio(row: Row) -> RawExample:
    """Read a task with the results of the tags Pairwise, Choices and Rating. Canceled annotations are left out.

    Pairwise: `left` is the first field that `toName` lists, or the response with the lower number or letter if the
    tags are not named after the fields.
    """
    data = mapping(need(row, "data"), "data")
    annotated = AnnotatedRow(data)
    for index, entry in enumerate(list_in(row, "annotations")):
        annotation = mapping(entry, f"annotations.{index}")
        if not annotation.get("was_cancelled"):
            _take(annotated, annotation, _person(annotation, index))
    return RawExample(origin({**data, "id": row.get("id")}) | annotated.fields(), annotated.notes())


def _take(annotated: AnnotatedRow, annotation: Row, person: str) -> None:
    for index, entry in enumerate(list_in(annotation, "result")):
        result = mapping(entry, f"result.{index}")
        kind, value = result.get("type"), result.get("value")
        answer = value.get(_VALUES.get(str(kind), "")) if isinstance(value, Mapping) else None
        if kind == "choices" and isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if kind == "pairwise" and answer in _SIDES:
            answer = _side(annotated, str(result.get("to_name")).split(","), answer)
        annotated.take(str(result.get("from_name")), person, answer, str(result.get("to_name")))


def _side(annotated: AnnotatedRow, tags: Sequence[str], side: str) -> str:
    """Return the name of the response on a side if the tags are named after the responses, else the side."""
    names = [plain_name(tag) for tag in tags]
    return names[_SIDES.index(side)] if sorted(names) == sorted(annotated.names) and len(names) == 2 else side


def _person(annotation: Row, index: int) -> str:
    person: Any = annotation.get("completed_by", index)
    return str(person.get("email", person.get("id"))) if isinstance(person, Mapping) else str(person)


FORMAT = RowFormat(
    "label-studio",
    has("data", "annotations"),
    read_label_studio,
    ORIGIN | {"data", "annotations"},
    open_columns=True,
)
