"""The native format: one prompt with two or more responses and grades of people."""

from __future__ import annotations

from ...schema import Group
from ..messages import messages, parsed
from ..raw_example import RawExample, Row, RowFormat, has

_NESTED = ("responses", "scores", "ranks", "capabilities", "annotators")


def read_native(row: Row) -> RawExample:
    """Read a row in the native format; a query's only response may be in `response` or `completion`.

    Parquet and `datasets` write all columns and capabilities of a file into every row, so null means absent. In a CSV
    file, lists and objects are written as JSON.
    """
    fields = {name: value for name, value in row.items() if value is not None}
    fields |= {name: parsed(fields[name]) for name in _NESTED if name in fields}
    if isinstance(fields.get("prompt"), list | tuple):
        fields["prompt"] = messages(fields["prompt"], "prompt")
    for name in ("capabilities", "annotators"):
        if isinstance(fields.get(name), dict):
            fields[name] = {label: grades for label, grades in fields[name].items() if grades is not None}
    if isinstance(fields.get("id"), int):
        fields["id"] = str(fields["id"])
    for name in ("response", "completion"):
        if "responses" not in fields and isinstance(fields.get(name), str):
            fields["responses"] = [fields[name]]
    return RawExample(fields)


FORMAT = RowFormat(
    "native",
    has("prompt", "responses"),
    read_native,
    frozenset(Group.model_fields) | {"response", "completion"},
    order=0,
    handwritten=True,
    unsuggested=frozenset({"response", "completion", "judge_labels", "scores_derived", "tools"}),
    strict=True,
)
