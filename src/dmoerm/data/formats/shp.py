"""SHP (Stanford Human Preferences): a post and two comments, one of which readers preferred."""

from __future__ import annotations

import re

from ...errors import DataError
from ..raw_example import ORIGIN, RawExample, Row, RowFormat, has, need, origin, task_name, text_in

_SPLIT = re.compile(r"_(train|validation|test)$")


def read_shp(row: Row) -> RawExample:
    """Read an SHP row: `labels` is 1 if comment A is preferred, 0 if B is. `domain` without its split is the task."""
    label = str(need(row, "labels"))
    if label not in ("0", "1"):
        raise DataError("must be 0 or 1", field="labels", value=row["labels"], hint="1: A is preferred, 0: B is")
    fields = origin(row) | {
        "prompt": text_in(row, "history"),
        "responses": [text_in(row, "human_ref_A"), text_in(row, "human_ref_B")],
        "ranks": [1, 2] if label == "1" else [2, 1],
    }
    if row.get("domain"):
        fields["task"] = task_name(_SPLIT.sub("", text_in(row, "domain")))
    return RawExample(fields)


FORMAT = RowFormat(
    "shp",
    has("history", "human_ref_A", "human_ref_B", "labels"),
    read_shp,
    ORIGIN | {"history", "human_ref_A", "human_ref_B", "labels", "domain"},
)
