"""Exports of annotation tools: Argilla's records and Label Studio's tasks, with the answers of single annotators.

Users name the fields and questions, so fields with responses and questions are recognized by their names. A response's
label is the mean of its grades; `annotators` keeps the single ones.

Argilla, nested: `{"id", "fields": {…}, "responses": {question: [{"value", "user_id"}, …]}, "metadata"}`; flat: a column
per field, and `question.responses`, `question.responses.users`, `question.responses.status`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from ...errors import DataError
from ...labels import OVERALL
from ..values import Row, messages, need, number
from . import Format, origin

Grades = list[float | None]
_PROMPTS = ("prompt", "instruction", "question", "input", "context", "conversation", "chat", "messages")
_RESPONSE = re.compile(r"(?:response|answer|completion|generation|output|candidate|text|reply)s?_?([0-9]+|[a-z])")
_OVERALL = re.compile(
    "(overall_)?(preferences?|ranking|rank|rating|score|label)|preferred|overall|choice|(best|better)(_response)?"
    "|comparison|pairwise|pw"
)
_TIE = re.compile("ties?|tied|equal|equally_good|both|same|neither|no_preference")


def _plain(name: object) -> str:
    """Return a name in lower case with `_` between its words: "Response-1" → "response_1"."""
    return re.sub(r"[^0-9a-z]+", "_", str(name).lower()).strip("_")


def _position(name: str) -> tuple[int, str, str]:
    """Return what sorts the names of responses: numbers by value, then letters; and the part before it."""
    match = _RESPONSE.fullmatch(name)
    suffix = match[1] if match else ""
    return (int(suffix) if suffix.isdigit() else 0), suffix, name.removesuffix(suffix)


class _AnnotatedRow:
    """A row's prompt and responses, and the grades that its answers give.

    Args:
        fields: the row's fields, one of them a prompt, such as `prompt` or `instruction`, two or more of them
            responses, such as `response_1` and `response_2` or `answer-a` and `answer-b`.

    Raises:
        DataError: there is no prompt, or there are no responses.
    """

    def __init__(self, fields: Row) -> None:
        plain = {_plain(name): value for name, value in fields.items() if value}
        prompt = next((name for name in _PROMPTS if name in plain), None)
        if prompt is None:
            hint = f"name the field with the prompt {', '.join(_PROMPTS[:-1])} or {_PROMPTS[-1]}"
            raise DataError("has no prompt", value=list(fields), hint=hint)
        self.prompt = plain[prompt] if isinstance(plain[prompt], str) else messages(plain[prompt], prompt)
        texts = {_plain(name): text for name, text in fields.items() if isinstance(text, str)}
        self.names = sorted((name for name in texts if _RESPONSE.fullmatch(name)), key=_position)
        if not self.names:
            hint = "name the fields with responses response_1, response_2 and so on"
            raise DataError("has no responses", value=list(fields), hint=hint)
        self.responses = [texts[name] for name in self.names]
        self.grades: dict[str, dict[str, Grades]] = {}  # overall or capability → person → a grade for each response

    def take(self, question: str, person: str, value: Any, rated_response: str = "") -> None:
        """Take a person's answer: a ranking, the name of the best response, "tie", or the rating of one response.

        Any other answer, such as a comment, is not read.

        Args:
            question: the question's name, such as `preference`; for a rating such as `quality_response_1`.
            rated_response: the name of the rated response, if the question does not contain it.
        """
        name, given = f"_{_plain(question)}_", _plain(rated_response)
        rated = given if given in self.names else next((each for each in self.names if f"_{each}_" in name), "")
        name = name.replace(f"_{rated}_", "_").strip("_")
        capability = OVERALL if not name or _OVERALL.fullmatch(name) else name
        mine = self.grades.setdefault(capability, {}).setdefault(person, [None] * len(self.names))
        for index, grade in enumerate(self._grades(value, rated)):
            mine[index] = mine[index] if grade is None else grade

    def _grades(self, value: Any, rated: str) -> Grades:
        """Return one grade for each response, None where it has none; an empty list for an answer that is not read."""
        if isinstance(value, list):  # a ranking: names from the best to the worst, or {"value", "rank"} with ties
            ranks: dict[str, float] = {}
            for rank, entry in enumerate(value, 1):
                entry = entry if isinstance(entry, Mapping) else {"value": entry, "rank": rank}
                if isinstance(entry.get("rank"), int | float):
                    ranks[_plain(entry.get("value"))] = -float(entry["rank"])
            return [ranks.get(name) for name in self.names]
        if rated and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return [number(value, "rating") if name == rated else None for name in self.names]
            except DataError:
                return []
        chosen = _plain(value) if isinstance(value, str) else ""
        if _TIE.fullmatch(chosen):
            return [0.5] * len(self.names)
        suffixes = [name.removeprefix(_position(name)[2]) for name in self.names]
        sides = ["left", "right"] if len(self.names) == 2 else []
        known = next((names for names in (self.names, suffixes, sides) if chosen in names), [])
        return [float(name == chosen) for name in known]

    def fields(self, origin_of: Row) -> dict[str, Any]:
        """Return the native fields: without `scores` if a response lacks an overall grade."""
        people = sorted({person for by_person in self.grades.values() for person in by_person})
        missing: Grades = [None] * len(self.names)
        annotators = {
            name: [[by_person.get(person, missing)[index] for person in people] for index in range(len(self.names))]
            for name, by_person in self.grades.items()
            if any(grade is not None for row in by_person.values() for grade in row)
        }
        means = {name: [_mean(values) for values in by_response] for name, by_response in annotators.items()}
        scores = means.pop(OVERALL, [None])
        labels = {"capabilities": means, "annotators": annotators} | ({} if None in scores else {"scores": scores})
        return origin(origin_of) | {"prompt": self.prompt, "responses": self.responses} | labels


def _mean(grades: Grades) -> float | None:
    present = [grade for grade in grades if grade is not None]
    return fmean(present) if present else None


# --- Argilla -------------------------------------------------------------------------------------------------------


def _argilla(row: Row) -> dict[str, Any]:
    """Read an Argilla record. Drafts and discarded answers are left out; suggestions of models are not read."""
    nested = isinstance(row.get("fields"), dict)
    fields = row["fields"] if nested else {name: row[name] for name in row if "." not in name}
    annotated = _AnnotatedRow(fields)
    for question, person, value, status in _nested_answers(row) if nested else _flat_answers(row):
        if status not in ("draft", "discarded"):
            annotated.take(question, person, value)
    metadata = row.get("metadata")
    return annotated.fields({**fields, **(metadata if isinstance(metadata, dict) else {}), "id": row.get("id")})


def _nested_answers(row: Row) -> Iterator[tuple[str, str, Any, Any]]:
    for question, answers in need(row, "responses", dict[str, list[dict] | None]).items():
        for index, answer in enumerate(answers or []):
            yield question, str(answer.get("user_id", index)), answer.get("value"), answer.get("status")


def _flat_answers(row: Row) -> Iterator[tuple[str, str, Any, Any]]:
    for column in row:
        if column.endswith(".responses") and row[column]:
            values = need(row, column, list)
            people = row.get(f"{column}.users") or range(len(values))
            states = row.get(f"{column}.status") or [None] * len(values)
            for value, person, status in zip(values, people, states, strict=True):
                yield column.removesuffix(".responses"), str(person), value, status


def _is_argilla(row: Row) -> bool:
    nested = isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict)
    return nested or any(column.endswith(".responses") for column in row)


# --- Label Studio --------------------------------------------------------------------------------------------------

_SIDES = ("left", "right")
_VALUES = {"pairwise": "selected", "choices": "choices", "rating": "rating"}


def _label_studio(row: Row) -> dict[str, Any]:
    """Read a task with the results of the tags Pairwise, Choices and Rating. Canceled annotations are left out.

    Pairwise: `left` is the first field that `toName` lists, or the response with the lower number or letter if the
    tags are not named after the fields.
    """
    data = need(row, "data", dict)
    annotated = _AnnotatedRow(data)
    for index, annotation in enumerate(need(row, "annotations", list[dict])):
        if annotation.get("was_cancelled"):
            continue
        person: Any = annotation.get("completed_by", index)
        if isinstance(person, Mapping):
            person = person.get("email", person.get("id"))
        for result in need(annotation, "result", list[dict]):
            kind, value, rated = result.get("type"), result.get("value"), str(result.get("to_name"))
            answer = value.get(_VALUES.get(str(kind), "")) if isinstance(value, Mapping) else None
            tags = [_plain(tag) for tag in rated.split(",")]
            if kind == "choices" and isinstance(answer, list) and len(answer) == 1:
                answer = answer[0]
            elif kind == "pairwise" and answer in _SIDES and sorted(tags) == sorted(annotated.names) and len(tags) == 2:
                answer = tags[_SIDES.index(answer)]
            annotated.take(str(result.get("from_name")), str(person), answer, rated)
    return annotated.fields({**data, "id": row.get("id")})


FORMATS = (
    Format("argilla", compute=_argilla, also={"fields", "responses", "metadata"}, looks=_is_argilla, open_columns=True),
    Format("label-studio", {"data", "annotations"}, compute=_label_studio, open_columns=True),
)
