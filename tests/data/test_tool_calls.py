"""Rows with tool calls as they are published; the rows are written for these tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmoerm.data.readers import Reading, read_groups
from dmoerm.errors import DataError
from dmoerm.integrations.scoring import as_response
from dmoerm.schema import Group

ReadRows = Callable[..., Reading]
ReadOne = Callable[..., Group]
USER = {"role": "user", "content": "Is it cold?"}
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "5 degrees"}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL_TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def check_conversation(group: Group) -> None:
    assert [(m.role, m.content) for m in group.prompt] == [
        ("user", "Is it cold?"),
        ("assistant", ""),
        ("tool", "5 degrees"),
    ]
    assert json.loads(group.prompt[1].tool_calls[0].function.arguments) == {"city": "Paris"}
    assert [tool["function"]["name"] for tool in group.tools] == ["weather"]


def test_openai_conversations_in_each_format(read_one: ReadOne) -> None:
    talk = [USER, ASKS, RESULT]
    rows: list[dict[str, Any]] = [
        {"prompt": talk, "responses": ["Yes.", "No."], "ranks": [1, 2], "tools": [TOOL]},
        {"prompt": talk, "chosen": [said("Yes.")], "rejected": [said("No.")], "tools": json.dumps([TOOL])},
        {"chosen": [*talk, said("Yes.")], "rejected": [*talk, said("No.")], "tools": [TOOL["function"]]},
        {"prompt": talk, "response_a": "Yes.", "response_b": "No.", "winner": "a", "tools": [TOOL]},
    ]
    for row in rows:
        group = read_one(row)
        check_conversation(group)
        assert group.responses == ("Yes.", "No.")
        again = read_one(json.loads(group.model_dump_json(exclude_none=True, exclude_defaults=True)))
        assert (again.prompt, again.tools) == (group.prompt, group.tools)


def test_sharegpt_with_functions(read_one: ReadOne) -> None:
    """LLaMA-Factory's spelling: the call and the tools are JSON texts."""
    turns = [
        {"from": "human", "value": "Is it cold?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
        {"from": "observation", "value": "5 degrees"},
    ]
    side = {"from": "gpt", "value": "Yes."}
    row = {"conversations": turns, "chosen": side, "rejected": side | {"value": "No."}}
    check_conversation(read_one(row | {"tools": json.dumps([TOOL["function"]])}))


def test_a_call_can_be_the_response(read_one: ReadOne) -> None:
    group = read_one({"prompt": [USER], "chosen": [ASKS], "rejected": [ASKS | {"content": "Hm.", "tool_calls": None}]})
    assert group.responses == (CALL_TEXT, "Hm.")
    assert as_response([USER, ASKS]) == CALL_TEXT


def test_parquet_pads_arguments_with_nulls(read_one: ReadOne, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def row(arguments: dict[str, str]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        talk = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "5"}]
        return {"prompt": talk, "chosen": "a", "rejected": "b"}

    parquet.write_table(pa.Table.from_pylist([row({"city": "Paris"}), row({"day": "May"})]), tmp_path / "calls.parquet")
    groups = read_groups(tmp_path / "calls.parquet").groups
    arguments = [group.prompt[1].tool_calls[0].function.arguments for group in groups]
    assert arguments == ['{"city": "Paris"}', '{"day": "May"}']
    assert groups[0].prompt[0].model_dump() == USER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": [USER | {"tool_calls": [CALL]}]}, r"prompt\.0.*only the assistant calls tools"),
        ({"prompt": [USER, ASKS | {"tool_calls": [{"id": "a"}]}]}, r"prompt\.1\.tool_calls\.0\.function"),
        ({"prompt": [USER, ASKS | {"tool_calls": 3}]}, r"prompt\.1\.tool_calls"),
        ({"prompt": [{"from": "function_call", "value": "no JSON"}]}, r"prompt\.0\.value: is not a tool call"),
        ({"tools": "weather"}, "tools: is not valid JSON"),
        ({"tools": [{"type": "web_search"}]}, "tools: a tool must be"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, r"prompt\.0\.role: is not a valid role"),
    ],
)
def test_what_is_no_call_is_a_bad_row(change: dict[str, Any], message: str, read_rows: ReadRows) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: {message}"):
        read_rows({"prompt": "Hi", "responses": ["a", "b"], "ranks": [1, 2]} | change)
