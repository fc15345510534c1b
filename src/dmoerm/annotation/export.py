"""Answers as native rows, which `dmoerm data check` and `dmoerm train` read.

A row is one pair, so that no preference arises between responses that were not compared. In `annotators`, the better
response has grade 1, the other one 0, and both have 0.5 in a tie; `scores` and `capabilities` are the mean grades.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ..data.human_labels import labels_of_people
from ..errors import DataError
from ..labeling.questions import ResponsePair
from ..labels import PROBABILITIES, Outcome
from ..schema import Grades
from .store import AnnotationStore

SOURCE = "dmoerm annotate"


def exported_rows(store: AnnotationStore) -> list[dict[str, Any]]:
    """Return a native row per pair with a verdict, in the order of the data.

    Raises:
        DataError: there are no verdicts.
    """
    grades: dict[int, dict[str, dict[str, Grades]]] = defaultdict(lambda: defaultdict(dict))
    answers = store.answers()
    for answer in answers:
        grades[answer.pair][answer.capability][answer.annotator] = _grades(answer.outcome)
    people = sorted({answer.annotator for answer in answers})
    rows = [(pair, labels_of_people(grades[number], people, 2)) for number, pair in store.pairs().items()]
    exported = [_row(pair, labels) for pair, labels in rows if labels]
    if not exported:
        raise DataError("there are no verdicts to export", file=store.path, hint="annotate with `dmoerm annotate DATA`")
    return exported


def _grades(outcome: Outcome) -> Grades:
    first = PROBABILITIES.get(outcome)
    return (None, None) if first is None else (first, 1 - first)


def _row(pair: ResponsePair, labels: dict[str, Any]) -> dict[str, Any]:
    group = pair.group
    question = group.model_dump(mode="json", include={"prompt", "tools"})
    suffix = f"#{pair.first}-{pair.second}" if len(group.responses) > 2 else ""
    responses = [group.responses[index] for index in pair[1:]]
    fields = {"id": group.id + suffix, "task": group.task, **question, "responses": responses}
    return fields | labels | {"source": SOURCE}
