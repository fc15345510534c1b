"""Answers of single annotators as the labels of a native row: mean grades, and `annotators`.

Exports of annotation tools have fields and questions that users named. Fields with responses and questions are
recognized by their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..errors import DataError
from ..labels import OVERALL
from ..schema import Grades
from .messages import messages
from .raw_example import Row, number

_PROMPTS = ("prompt", "instruction", "question", "input", "context", "conversation", "chat", "messages")
_RESPONSE = re.compile(r"(?:response|answer|completion|generation|output|candidate|text|reply)s?_?([0-9]+|[a-z])")
_OVERALL = re.compile(
    "(overall_)?(preferences?|ranking|rank|rating|score|label)|preferred|overall|choice|(best|better)(_response)?"
    "|comparison|pairwise|pw"
)
_TIE = re.compile("ties?|tied|equal|equally_good|both|same|neither|no_preference")


def labels_of_people(
    grades: Mapping[str, Mapping[str, Grades]], people: Sequence[str], responses: int
) -> dict[str, Any]:
    """Return the fields `scores`, `capabilities` and `annotators` of a native row.

    A response's label is the mean of its grades. `scores` are left out if a response has no overall grade.

    Args:
        grades: "overall" or a capability → person → one grade per response (None: not graded).
        people: all people, in the order in which `annotators` lists their grades.
        responses: the number of responses.
    """
    graded = {name: by_person for name, by_person in grades.items() if _any_grade(by_person)}
    missing = (None,) * responses
    annotators = {
        name: [[by_person.get(person, missing)[index] for person in people] for index in range(responses)]
        for name, by_person in graded.items()
    }
    means = {name: [_mean(values) for values in by_response] for name, by_response in annotators.items()}
    scores = means.pop(OVERALL, [None])
    fields: dict[str, Any] = {} if None in scores else {"scores": scores}
    return fields | ({"capabilities": means} if means else {}) | ({"annotators": annotators} if annotators else {})


def _any_grade(by_person: Mapping[str, Grades]) -> bool:
    return any(grade is not None for grades in by_person.values() for grade in grades)


def _mean(grades: Sequence[float | None]) -> float | None:
    present = [grade for grade in grades if grade is not None]
    return fmean(present) if present else None


class AnnotatedRow:
    """The fields of an annotated row, and the grades that its answers give.

    Args:
        fields: the row's fields, one of them a prompt, such as `prompt` or `instruction`, two or more of them
            responses, such as `response_1` and `response_2` or `answer-a` and `answer-b`.

    Raises:
        DataError: there is no prompt, or there are no responses.
    """

    def __init__(self, fields: Row) -> None:
        self.prompt = _prompt(fields)
        texts = {plain_name(name): text for name, text in fields.items() if isinstance(text, str)}
        self.names = sorted((name for name in texts if _RESPONSE.fullmatch(name)), key=_position)
        if not self.names:
            hint = "name the fields with responses response_1, response_2 and so on"
            raise DataError("has no responses", value=list(fields), hint=hint)
        self.responses = [texts[name] for name in self.names]
        self.grades: dict[str, dict[str, list[float | None]]] = {}
        self._unread: dict[str, bool] = {}

    def take(self, question: str, person: str, value: Any, rated_response: str = "") -> None:
        """Take a person's answer: a ranking, the name of the best response, "tie", or the rating of one response.

        Args:
            question: the question's name, such as `preference`; for a rating such as `quality_response_1`.
            person: the person.
            value: the answer.
            rated_response: the name of the rated response, if the question does not contain it.
        """
        capability, rated = self._subject(question, plain_name(rated_response))
        grades = self._grades(value, rated)
        self._unread[question] = self._unread.get(question, True) and grades is None
        mine = self.grades.setdefault(capability, {}).setdefault(person, [None] * len(self.names))
        for index, grade in enumerate(grades or ()):
            mine[index] = mine[index] if grade is None else grade

    def fields(self) -> dict[str, Any]:
        """Return the native fields `prompt`, `responses` and the labels."""
        people = sorted({person for by_person in self.grades.values() for person in by_person})
        grades = {name: {who: tuple(row) for who, row in rows.items()} for name, rows in self.grades.items()}
        labels = labels_of_people(grades, people, len(self.names))
        return {"prompt": self.prompt, "responses": self.responses} | labels

    def notes(self) -> tuple[str, ...]:
        """Return a note per question none of whose answers compares or rates the responses."""
        return tuple(
            f"the question {name!r} does not compare the responses" for name, is_ in self._unread.items() if is_
        )

    def _subject(self, question: str, given: str) -> tuple[str, str]:
        """Return the capability that a question is about, and the name of the response that it rates."""
        name = f"_{plain_name(question)}_"
        rated = given if given in self.names else next((each for each in self.names if f"_{each}_" in name), "")
        name = name.replace(f"_{rated}_", "_").strip("_")
        return (OVERALL if not name or _OVERALL.fullmatch(name) else name), rated

    def _grades(self, value: Any, rated: str) -> Grades | None:
        if isinstance(value, list):
            return self._ranked(value)
        if rated and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return tuple(number(value, "rating") if name == rated else None for name in self.names)
            except DataError:
                return None
        return self._best(plain_name(value)) if isinstance(value, str) else None

    def _ranked(self, ranking: list[Any]) -> Grades | None:
        """Return the grades of a ranking: names from the best to the worst, or {"value", "rank"} with ties."""
        ranks: dict[str, float] = {}
        for rank, entry in enumerate(ranking, 1):
            entry = entry if isinstance(entry, Mapping) else {"value": entry, "rank": rank}
            if isinstance(entry.get("rank"), int | float):
                ranks[plain_name(entry.get("value"))] = -float(entry["rank"])
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


def _prompt(fields: Row) -> Any:
    plain = {plain_name(name): value for name, value in fields.items() if value}
    name = next((name for name in _PROMPTS if name in plain), None)
    if name is None:
        hint = f"name the field with the prompt {', '.join(_PROMPTS[:-1])} or {_PROMPTS[-1]}"
        raise DataError("has no prompt", value=list(fields), hint=hint)
    return plain[name] if isinstance(plain[name], str) else messages(plain[name], name)


def plain_name(name: object) -> str:
    """Return a name in lower case with `_` between its words: "Response-1" → "response_1"."""
    return re.sub(r"[^0-9a-z]+", "_", str(name).lower()).strip("_")


def _position(name: str) -> tuple[int, str, str]:
    """Return what sorts the names of responses: numbers by value, then letters; and the part before it."""
    match = _RESPONSE.fullmatch(name)
    suffix = match[1] if match else ""
    return (int(suffix) if suffix.isdigit() else 0), suffix, name.removesuffix(suffix)
