"""HelpSteer 1 and 2: one graded response per row."""

from __future__ import annotations

import re
from typing import Any

from ..raw_example import ORIGIN, RawExample, Row, RowFormat, grade, has, need, number, origin, text_in

CAPABILITIES = ("correctness", "coherence", "complexity", "verbosity")
"""The grades other than `helpfulness`, which is the overall score."""

_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def read_helpsteer(row: Row) -> RawExample:
    """Read a HelpSteer 1 or 2 row: one response, graded 0 to 4. The rows of one prompt are joined into a group.

    `helpfulness` is the overall score; correctness, coherence, complexity and verbosity are capabilities.
    """
    fields = origin(row) | {
        "prompt": _conversation(text_in(row, "prompt")),
        "responses": [text_in(row, "response")],
        "scores": [number(need(row, "helpfulness"), "helpfulness")],
    }
    capabilities = {name: [grade(row.get(name), name)] for name in CAPABILITIES}
    return RawExample(fields | {"capabilities": capabilities})


def _conversation(text: str) -> Any:
    """Split HelpSteer 2's text of a conversation at its `<extra_id_1>User` and `<extra_id_1>Assistant` lines."""
    first, *rest = _TURN.split(text)
    if not rest:
        return text
    turns = [{"role": "user", "content": first}] if first.strip() else []
    turns += [
        {"role": speaker.lower(), "content": content} for speaker, content in zip(rest[::2], rest[1::2], strict=True)
    ]
    return turns


FORMAT = RowFormat(
    "helpsteer",
    has("prompt", "response", "helpfulness"),
    read_helpsteer,
    ORIGIN | {"prompt", "response", "helpfulness", *CAPABILITIES},
    one_response=True,
)
