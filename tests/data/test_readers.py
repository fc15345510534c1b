import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmoerm.data.formats import find_formats
from dmoerm.data.readers import read_groups, read_queries
from dmoerm.errors import ConfigError, DataError, DmoermError
from dmoerm.schema import Group, Query

Write = Callable[..., Path]
ROW = {"id": "1", "task": "chat", "prompt": "Hi", "responses": ["a", "b"], "scores": [1.0, 0.0]}
FIELDS = (
    *("prompt", "responses", "response", "scores", "ranks", "capabilities", "annotators", "chosen", "rejected", "id"),
    *("src", "tgt", "rank", "label", "instruction", "completions", "helpfulness", "context", "response1", "response2"),
    *("overall_preference", "individual_preference", "subset", "domain", "margin", "score_chosen", "score_rejected"),
    *("annotations", "overall_score", "Rating", "role", "content", "score", "task", "correctness"),
    *("conversation_a", "winner", "labels", "label", "completion", "answers", "rank", "answer", "from", "value"),
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "native": ROW | {"capabilities": {"logic": [1, 0]}, "annotators": {"logic": [[1], [0]]}},
    "mtmc": {"label": "闲聊", "src": ["你", "好"], "tgt": ["好"], "response": ["好", "不好"], "rank": [1, 2]},
    "ultrafeedback": {
        "instruction": "Hi",
        "completions": [{"response": "a", "overall_score": 1, "annotations": {}}] * 2,
    },
    "helpsteer": {"prompt": "Hi", "response": "a", "helpfulness": 4, "correctness": 3},
    "helpsteer3": {
        "domain": "stem",
        "context": [{"role": "user", "content": "Hi"}],
        "response1": "a",
        "response2": "b",
        "overall_preference": -2,
        "individual_preference": [{"score": -2}],
    },
    "rewardbench": {"prompt": "Hi", "chosen": ["a"], "rejected": ["b"], "subset": "x", "id": 7},
    "hh": {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
    "trl": {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 1, "score_chosen": 2, "score_rejected": 1},
}
EXAMPLES |= {
    "arena": {
        "conversation_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"text": "a"}]}],
        "conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "b"}],
        "winner": "tie (bothbad)",
    },
    "votes": {"prompt": '["Hi"]', "response_a": '["a"]', "response_b": '["b", null]', "winner_model_a": 1}
    | {"winner_model_b": 0, "winner_tie": 0},
    "shp": {"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "domain": "x_train"},
    "kto": {"prompt": "Hi", "completion": [{"role": "assistant", "content": "a"}], "label": True},
    "nectar": {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": [{"answer": "a", "rank": 1}] * 2},
    "orca": {"system": "s", "input": "Hi", "chosen": "a", "rejected": "b", "chosen_score": 2, "rejected_score": 1},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": "b",
    },
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "\n\nHuman: a\n\nAssistant: b", "N/A", "4", "\ud800"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), children, max_size=6),
    max_leaves=12,
)  # fmt: skip


def test_a_bad_row_is_named_with_its_place(write_rows: Write) -> None:
    path = write_rows([ROW, ROW | {"scores": [1]}, ROW | {"prompt": 3}])
    with pytest.raises(DataError, match=rf"^{path}:2: scores: has 1 entries .*give one number") as caught:
        read_groups(path)
    assert caught.value.line == 2
    reading = read_groups(path, on_error="collect")
    assert [error.line for error in reading.bad] == [2, 3]
    assert [error.field for error in reading.bad] == ["scores", "prompt"]
    assert [error.value for error in reading.bad] == [[1], 3]
    assert (len(reading.groups), reading.rows) == (1, 3)


def test_native_rows_survive_reading(write_rows: Write) -> None:
    reading = read_groups(write_rows([ROW]))
    assert reading.groups == [Group.model_validate(ROW)]


def test_a_source_without_rows_is_an_error(write_rows: Write) -> None:
    for on_error in ("raise", "collect"):
        with pytest.raises(DataError, match=r"rows\.jsonl: contains no rows"):
            read_groups(write_rows([]), on_error=on_error)


def test_an_unknown_format_is_an_error(write_rows: Write) -> None:
    with pytest.raises(ConfigError, match="'csv'"):
        read_groups(write_rows([ROW]), format="csv")


def test_rows_in_no_known_format_are_bad_rows(write_rows: Write) -> None:
    reading = read_groups(write_rows([{"question": "Why?"}, ROW]), on_error="collect")
    assert [error.line for error in reading.bad] == [1]
    assert len(reading.groups) == 1


def test_labels_must_fit_the_responses_before_any_is_left_out(write_rows: Write) -> None:
    row = {"src": ["你好"], "tgt": [], "response": ["好", "", "坏"], "rank": [1, 2]}
    with pytest.raises(DataError, match="ranks: has 2 entries for 3 responses"):
        read_groups(write_rows([row]))


def test_parquet_equals_json_lines(write_rows: Write, tmp_path: Path) -> None:
    rows = [ROW | {"capabilities": {"logic": [1.0, None]}}, ROW | {"capabilities": {"empathy": [None, 1.0]}}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_groups(tmp_path / "rows.parquet").groups == read_groups(write_rows(rows)).groups
    assert list(read_queries(tmp_path / "rows.parquet")) == list(read_queries(write_rows(rows)))


def test_a_bad_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([ROW, ROW | {"scores": [1.0]}]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet:2: "):
        read_groups(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("row", "responses"),
    [
        (ROW, ("a", "b")),
        ({"prompt": "Hi", "responses": ["a"]}, ("a",)),
        ({"prompt": "Hi", "response": "a"}, ("a",)),
        ({"prompt": "Hi", "completion": "a"}, ("a",)),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, ("a", "a")),
        ({"prompt": "Hi", "response": "a", "helpfulness": 3}, ("a",)),
    ],
)
def test_queries_need_no_preference(row: dict[str, Any], responses: tuple[str, ...], write_rows: Write) -> None:
    (query,) = read_queries(write_rows([row]))
    assert type(query) is Query
    assert (query.prompt, query.responses) == ("Hi", responses)


def test_queries_are_read_one_at_a_time(write_rows: Write) -> None:
    path = write_rows([ROW, ROW, {"prompt": ""}])
    assert len(list(islice(read_queries(path), 2))) == 2
    with pytest.raises(DataError, match=f"^{path}:3: "):
        list(read_queries(path))


def test_bad_queries_can_be_passed_over(write_rows: Write) -> None:
    bad: list[DataError] = []
    path = write_rows([{"prompt": ""}, ROW, [], ROW])
    assert len(list(read_queries(path, on_bad=bad.append))) == 2
    assert [error.line for error in bad] == [1, 3]


ROWS = st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8), max_size=3)
BYTES = st.binary(max_size=60) | st.text(max_size=60).map(str.encode)
LENIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=150, **LENIENT)
@given(content=BYTES, suffix=st.sampled_from([".jsonl", ".json", ".parquet"]))
def test_arbitrary_bytes_raise_nothing_else(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    only_dmoerm_errors(path, "auto")


@settings(max_examples=150, **LENIENT)
@given(rows=ROWS, format=st.sampled_from(["auto", *find_formats()]))
def test_arbitrary_rows_raise_nothing_else(rows: list[dict], format: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    only_dmoerm_errors(path, format)


@settings(max_examples=300, **LENIENT)
@given(data=st.data(), name=st.sampled_from(sorted(EXAMPLES)))
def test_damaged_rows_raise_nothing_else(data: st.DataObject, name: str, tmp_path: Path) -> None:
    """One or two fields of a good row get another value: what lies behind the first checks is reached this way."""
    row = EXAMPLES[name] | data.draw(st.dictionaries(st.sampled_from(sorted(EXAMPLES[name])), VALUES, max_size=2))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    only_dmoerm_errors(path, name)


def only_dmoerm_errors(path: Path, format: str) -> None:
    try:
        reading = read_groups(path, format=format, on_error="collect")
        assert all(str(error).startswith(str(path)) for error in reading.bad)
    except DmoermError as error:
        str(error).encode()
    try:
        list(read_queries(path, format=format, on_bad=lambda error: None))
    except DmoermError as error:
        str(error).encode()


def test_the_human_data_is_read_whole(human_data: Path) -> None:
    reading = read_groups(human_data / "topical_chat.jsonl")
    assert (len(reading.groups), reading.rows, reading.bad, reading.skipped) == (38, 38, [], {})
    assert {len(group.capabilities) for group in reading.groups} == {5}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "responses": ["a", "a", "b"], "scores": [3, 1, 2]},
        {"prompt": "Hi", "chosen": ["a", "a"], "rejected": ["a", "b"], "subset": "x"},
        {"src": ["Hi"], "response": ["a", "a", "b"], "rank": [1, 2, 3], "label": "chitchat"},
    ],
)
def test_identical_responses_with_different_grades_are_counted_and_make_no_pair(
    row: dict[str, Any], read_rows: Callable[..., Any]
) -> None:
    reading = read_rows(row)
    (group,) = reading.groups
    assert reading.skipped["pair: identical responses with different grades"] == group.identical_pairs() > 0
    assert all(group.responses[pair.better] != group.responses[pair.worse] for pair in group.pairs())


def test_a_native_group_of_one_text_is_left_out_and_counted(read_rows: Callable[..., Any]) -> None:
    reading = read_rows(ROW | {"responses": ["a", "a"]}, ROW)
    assert len(reading.groups) == 1
    assert reading.skipped == {"row: the responses are the same text": 1}
