"""HelpSteer 3: two responses and a preference from −3 to 3."""

from __future__ import annotations

from ..messages import prompt_in
from ..raw_example import (
    ORIGIN,
    RawExample,
    Row,
    RowFormat,
    has,
    list_in,
    mapping,
    need,
    number,
    origin,
    task_name,
    text_in,
)


def read_helpsteer3(row: Row) -> RawExample:
    """Read a HelpSteer 3 row: `overall_preference` from −3 (response1 is much better) to 3; `domain` is the task.

    The scores differ by the preference. `individual_preference` has the grades of the annotators.
    """
    fields = origin(row) | {
        "prompt": prompt_in(row, "context"),
        "responses": [text_in(row, "response1"), text_in(row, "response2")],
    }
    if row.get("domain"):
        fields["task"] = task_name(text_in(row, "domain"))
    if row.get("overall_preference") is not None:
        fields["scores"] = _halves(number(row["overall_preference"], "overall_preference"))
    people = [
        _halves(number(need(mapping(entry, "individual_preference"), "score"), "individual_preference.score"))
        for entry in (list_in(row, "individual_preference") if row.get("individual_preference") else [])
    ]
    if people:
        fields["annotators"] = {"overall": [list(grades) for grades in zip(*people, strict=True)]}
    return RawExample(fields)


def _halves(preference: float) -> list[float]:
    return [-preference / 2, preference / 2]


FORMAT = RowFormat(
    "helpsteer3",
    has("context", "response1", "response2"),
    read_helpsteer3,
    ORIGIN | {"context", "response1", "response2", "domain", "overall_preference", "individual_preference"},
)
