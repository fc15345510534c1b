"""Nearly valid rows, answers and texts are read, or refused with one of dmoerm's errors."""

from __future__ import annotations

import gzip
import io
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import targets

_NAMES = """prompt responses scores ranks capabilities chosen rejected messages instruction completions response
helpfulness preference task id margin annotators role content score_chosen winner judge_labels source conversation"""
FIELDS = _NAMES.split()
_SMALL = st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
_FIELD = st.sampled_from(FIELDS) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | _SMALL,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(_FIELD, children, max_size=5),
    max_leaves=12,
)
_ROLE = st.sampled_from(["user", "assistant", "system", "tool"])
TURN = st.fixed_dictionaries({"role": _ROLE, "content": st.text(max_size=9)})
NEARLY: dict[str, Any] = {
    "prompt": st.text(max_size=9) | st.lists(TURN, max_size=3),
    "chosen": st.text(max_size=9) | st.lists(TURN, max_size=3),
    "rejected": st.text(max_size=9) | st.lists(TURN, max_size=3),
    "responses": st.lists(st.text(max_size=9), max_size=3),
    "scores": st.lists(st.integers(-3, 3) | st.none(), max_size=3),
    "capabilities": st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 3), max_size=3), max_size=2),
}
ROW = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6) | st.fixed_dictionaries({}, optional=NEARLY)
MARKS = ["<|im_start|>", "<|im_end|>", "user\n", "assistant\n", "</s>", "<|eot_id|>", "<start_of_turn>", " ", "\n", "x"]
LETTERS = ['{"empathy": "', 'A"', ', "logic": "', 'B"}', "```json\n", "```", "A", "C", "\n", " ", "\\u0041"]


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=3))
def test_rows(given_rows: list[Any]) -> None:
    lines = "\n".join(json.dumps(row) for row in given_rows).encode()
    targets.rows(lines)
    targets.compressed(gzip.compress(lines))
    targets.array(json.dumps(given_rows).encode())


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=3))
def test_columns(given_rows: list[Any]) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = io.BytesIO()
    try:
        parquet.write_table(pa.Table.from_pylist(given_rows), content)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return  # the types of these rows do not fit in a table
    targets.columns(content.getvalue())
    targets.columns(content.getvalue()[: len(content.getvalue()) // 2])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(LETTERS) | st.text(max_size=4), max_size=12))
def test_verdicts(parts: list[str]) -> None:
    targets.verdict("".join(parts).encode())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(MARKS) | st.text(max_size=4), max_size=16))
def test_transcripts(parts: list[str]) -> None:
    targets.transcript("".join(parts).encode())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | ROW.map(lambda row: json.dumps(row).encode()))
def test_anything(data: bytes) -> None:
    for target in targets.TARGETS.values():
        target(data)


@pytest.mark.parametrize("mark", [*MARKS, "```json\n", "```", '"empathy": "', "</s> ", "<|"])
@pytest.mark.parametrize("end", ["", "x"])
def test_time_is_linear_in_the_length_of_a_text(mark: str, end: str) -> None:
    """On a megabyte of one repeated mark, a quadratic pattern takes hours."""
    data = (mark * (1_000_000 // len(mark)) + end).encode()
    began = time.monotonic()
    targets.transcript(data)
    targets.verdict(data[:100_000])
    assert time.monotonic() - began < 20
