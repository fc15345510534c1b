"""Exports of annotation tools: Argilla's records and Label Studio's tasks, with the answers of single annotators.

Users name the fields and questions, so fields with responses and questions are recognized by their names. A response's
label is the mean of its grades; `annotators` keeps the single ones.

Argilla, nested: `{"id", "fields": {…}, "responses": {question: [{"value", "user_id"}, …]}, "metadata"}`; flat: a column
per field, and `question.responses`, `question.responses.users`, `question.responses.status`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from ...errors import DataError
from ...labels import OVERALL
from ...schema import Grades
from ..values import Row, list_in, mapping, mappings_in, messages, need, number, origin
from . import Format, RawExample

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
        self.grades: dict[str, dict[str, list[float | None]]] = {}  # overall or capability → person → grades
        self._unread: dict[str, bool] = {}

    def take(self, question: str, person: str, value: Any, rated_response: str = "") -> None:
        """Take a person's answer: a ranking, the name of the best response, "tie", or the rating of one response.

        Args:
            question: the question's name, such as `preference`; for a rating such as `quality_response_1`.
            rated_response: the name of the rated response, if the question does not contain it.
        """
        name, given = f"_{_plain(question)}_", _plain(rated_response)
        rated = given if given in self.names else next((each for each in self.names if f"_{each}_" in name), "")
        name = name.replace(f"_{rated}_", "_").strip("_")
        capability = OVERALL if not name or _OVERALL.fullmatch(name) else name
        grades = self._grades(value, rated)
        self._unread[question] = self._unread.get(question, True) and grades is None
        mine = self.grades.setdefault(capability, {}).setdefault(person, [None] * len(self.names))
        for index, grade in enumerate(grades or ()):
            mine[index] = mine[index] if grade is None else grade

    def example(self, origin_of: Row) -> RawExample:
        """Return the native row, and a note per question none of whose answers compares or rates the responses."""
        people = sorted({person for by_person in self.grades.values() for person in by_person})
        grades = {name: {who: tuple(row) for who, row in rows.items()} for name, rows in self.grades.items()}
        fields = origin(origin_of) | {"prompt": self.prompt, "responses": self.responses}
        fields |= _labels_of_people(grades, people, len(self.names))
        unread = [name for name, nothing in self._unread.items() if nothing]
        return RawExample(fields, tuple(f"the question {name!r} does not compare the responses" for name in unread))

    def _grades(self, value: Any, rated: str) -> Grades | None:
        if isinstance(value, list):
            return self._ranked(value)
        if rated and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return tuple(number(value, "rating") if name == rated else None for name in self.names)
            except DataError:
                return None
        return self._best(_plain(value)) if isinstance(value, str) else None

    def _ranked(self, ranking: list[Any]) -> Grades | None:
        """Return the grades of a ranking: names from the best to the worst, or {"value", "rank"} with ties."""
        ranks: dict[str, float] = {}
        for rank, entry in enumerate(ranking, 1):
            entry = entry if isinstance(entry, Mapping) else {"value": entry, "rank": rank}
            if isinstance(entry.get("rank"), int | float):
                ranks[_plain(entry.get("value"))] = -float(entry["rank"])
        grades = tuple(ranks.get(name) for name in self.names)
        return grades if any(grade is not None for grade in grades) else None

    def _best(self, chosen: str) -> Grades | None:
        if _TIE.fullmatch(chosen):
            return (0.5,) * len(self.names)
        suffixes = [name.removeprefix(_position(name)[2]) for name in self.names]
        sides = ["left", "right"] if len(self.names) == 2 else []
        for known in (self.names, suffixes, sides):
            if chosen in known:
                return tuple(float(name == chosen) for name in known)
        return None


def _labels_of_people(
    grades: Mapping[str, Mapping[str, Grades]], people: Sequence[str], responses: int
) -> dict[str, Any]:
    """Return the native fields `scores`, `capabilities` and `annotators`; no `scores` if a response lacks a grade.

    Args:
        grades: "overall" or a capability → person → one grade per response (None: not graded).
        people: all people, in the order in which `annotators` lists their grades.
        responses: the number of responses.
    """
    missing = (None,) * responses
    annotators = {
        name: [[by_person.get(person, missing)[index] for person in people] for index in range(responses)]
        for name, by_person in grades.items()
        if any(grade is not None for row in by_person.values() for grade in row)
    }
    means = {name: [_mean(values) for values in by_response] for name, by_response in annotators.items()}
    scores = means.pop(OVERALL, [None])
    fields: dict[str, Any] = {} if None in scores else {"scores": scores}
    return fields | ({"capabilities": means} if means else {}) | ({"annotators": annotators} if annotators else {})


def _mean(grades: Sequence[float | None]) -> float | None:
    present = [grade for grade in grades if grade is not None]
    return fmean(present) if present else None


# --- Argilla -------------------------------------------------------------------------------------------------------


def _argilla(row: Row) -> RawExample:
    """Read an Argilla record. Drafts and discarded answers are left out; suggestions of models are not read."""
    nested = isinstance(row.get("fields"), dict)
    fields = mapping(row["fields"], "fields") if nested else {name: row[name] for name in row if "." not in name}
    annotated = _AnnotatedRow(fields)
    for question, person, value, status in _nested_answers(row) if nested else _flat_answers(row):
        if status not in ("draft", "discarded"):
            annotated.take(question, person, value)
    metadata = row.get("metadata")
    return annotated.example({**fields, **(metadata if isinstance(metadata, dict) else {}), "id": row.get("id")})


def _nested_answers(row: Row) -> Iterator[tuple[str, str, Any, Any]]:
    answers = mapping(row["responses"], "responses")
    for question in answers:
        for index, entry in enumerate(list_in(answers, question) if answers[question] else []):
            answer = mapping(entry, f"responses.{question}.{index}")
            yield question, str(answer.get("user_id", index)), answer.get("value"), answer.get("status")


def _flat_answers(row: Row) -> Iterator[tuple[str, str, Any, Any]]:
    for column in row:
        if column.endswith(".responses") and row[column]:
            values = list_in(row, column)
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


def _label_studio(row: Row) -> RawExample:
    """Read a task with the results of the tags Pairwise, Choices and Rating. Canceled annotations are left out.

    Pairwise: `left` is the first field that `toName` lists, or the response with the lower number or letter if the
    tags are not named after the fields.
    """
    data = mapping(need(row, "data"), "data")
    annotated = _AnnotatedRow(data)
    for index, annotation in enumerate(mappings_in(row, "annotations")):
        if annotation.get("was_cancelled"):
            continue
        person: Any = annotation.get("completed_by", index)
        if isinstance(person, Mapping):
            person = person.get("email", person.get("id"))
        for result in mappings_in(annotation, "result"):
            annotated.take(str(result.get("from_name")), str(person), *_answer(result, annotated.names))
    return annotated.example({**data, "id": row.get("id")})


def _answer(result: Row, names: Sequence[str]) -> tuple[Any, str]:
    """Return the answer in the form of `_AnnotatedRow.take`, and the names of the rated fields."""
    kind, value, rated = result.get("type"), result.get("value"), str(result.get("to_name"))
    answer = value.get(_VALUES.get(str(kind), "")) if isinstance(value, Mapping) else None
    if kind == "choices" and isinstance(answer, list) and len(answer) == 1:
        return answer[0], rated
    tags = [_plain(tag) for tag in rated.split(",")]
    if kind == "pairwise" and answer in _SIDES and sorted(tags) == sorted(names) and len(tags) == 2:
        return tags[_SIDES.index(answer)], rated
    return answer, rated


FORMATS = (
    Format("argilla", compute=_argilla, also={"fields", "responses", "metadata"}, looks=_is_argilla, open_columns=True),
    Format("label-studio", {"data", "annotations"}, compute=_label_studio, open_columns=True),
)
