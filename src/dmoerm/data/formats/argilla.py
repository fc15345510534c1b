"""Argilla: records with the answers of annotators, as `records.to_json` or `records.to_datasets` writes them.

Nested: `{"id", "fields": {…}, "responses": {question: [{"value", "user_id"}, …]}, "metadata"}`.
Flat: a column per field, and the columns `question.responses`, `question.responses.users`, `question.responses.status`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..human_labels import AnnotatedRow
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, list_in, mapping, origin

_RESPONSES = ".responses"
_NOT_SUBMITTED = ("draft", "discarded")


def read_argilla(row: Row) -> RawExample:
    """Read an Argilla record. Drafts and discarded answers are left out; suggestions of models are not read."""
    nested = isinstance(row.get("fields"), dict)
    fields = mapping(row["fields"], "fields") if nested else {name: row[name] for name in row if "." not in name}
    metadata = row.get("metadata")
    annotated = AnnotatedRow(fields)
    for question, person, value in _nested_answers(row) if nested else _flat_answers(row):
        annotated.take(question, person, value)
    labels = origin({**fields, **(metadata if isinstance(metadata, dict) else {}), "id": row.get("id")})
    return RawExample(labels | annotated.fields(), annotated.notes())


def _nested_answers(row: Row) -> Iterator[tuple[str, str, Any]]:
    answers = mapping(row["responses"], "responses")
    for question in answers:
        for index, entry in enumerate(list_in(answers, question) if answers[question] else []):
            answer = mapping(entry, f"responses.{question}.{index}")
            if answer.get("status") not in _NOT_SUBMITTED:
                yield question, str(answer.get("user_id", index)), answer.get("value")


def _flat_answers(row: Row) -> Iterator[tuple[str, str, Any]]:
    for column in row:
        if column.endswith(_RESPONSES) and row[column]:
            values = list_in(row, column)
            people = row.get(f"{column}.users") or range(len(values))
            states = row.get(f"{column}.status") or [None] * len(values)
            for value, person, status in zip(values, people, states, strict=True):
                if status not in _NOT_SUBMITTED:
                    yield column.removesuffix(_RESPONSES), str(person), value


def _fits(row: Row) -> bool:
    nested = isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict)
    return nested or any(column.endswith(_RESPONSES) for column in row)


FORMAT = RowFormat("argilla", _fits, read_argilla, ORIGIN | {"fields", "responses", "metadata"}, open_columns=True)
