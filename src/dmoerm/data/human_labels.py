"""Single people's grades as the labels of a native row: the mean grades, and `annotators`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..labels import OVERALL
from ..schema import Grades


def labels_of_people(grades: Mapping[str, Mapping[str, Grades]], people: Sequence[str], responses: int) -> dict[str, Any]:
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
