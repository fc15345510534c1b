"""Any name works, and two names never share a folder."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.data.statistics import data_statistics
from dmoerm.errors import DataError
from dmoerm.evaluation.results import SUMMARIES
from dmoerm.names import MAX_LENGTH, RESERVED_CAPABILITIES, RESERVED_TASKS, check_name, folder_name
from dmoerm.schema import parse_group

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.from_regex(
    "[A-Za-z0-9 _.=/-]+", fullmatch=True
)


@pytest.mark.parametrize("name", ["chitchat", "objective_qa", "a-b_c", "9", "x" * 200])
def test_a_plain_name_is_its_own_folder_name(name: str) -> None:
    assert folder_name(name) == name


def test_any_other_name_has_a_readable_part_and_a_digest() -> None:
    assert folder_name("Code & Math") == "code_math=d8f5abfb4f97"
    assert folder_name("naïve/slash").startswith("naive_slash=")
    assert folder_name("闲聊").startswith("name=")


@given(NAMES, NAMES)
def test_different_names_have_different_folders_even_where_case_is_ignored(first: str, second: str) -> None:
    folders = folder_name(first), folder_name(second)
    assert (folders[0] == folders[1]) == (first == second)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_=-]*", folder) for folder in folders)
    assert folder_name(folders[0]) == folders[0] or "=" in folders[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        (" chat", "white space"),
        ("mean", "reserved for the mean over tasks"),
        ("two\nlines", "a control character"),
        ("two\u2028lines", "a line break"),
        ("\ud800", "surrogate"),
        ("x" * (MAX_LENGTH + 1), f"{MAX_LENGTH + 1} characters; use at most {MAX_LENGTH}"),
    ],
)
def test_an_invalid_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_name("task", name)


def test_no_task_has_the_name_of_an_entry_beside_the_tasks() -> None:
    assert RESERVED_TASKS == SUMMARIES
    assert check_name("capability", "mean") == "mean"


@pytest.mark.parametrize("name", RESERVED_CAPABILITIES)
def test_no_capability_has_the_name_of_a_score_of_the_whole_response(name: str) -> None:
    assert check_name("task", name) == name
    with pytest.raises(DataError, match=f"the capability name '{name}' is reserved"):
        parse_group({"prompt": "p", "responses": ["a", "b"], "scores": [1, 0], "capabilities": {name: [1, 2]}})


def test_reading_data_refuses_the_names_that_training_would_refuse(write_rows) -> None:
    row = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 0]}
    with pytest.raises(DataError, match="task: the task name 'a\\\\tb' contains a control character"):
        parse_group(row | {"task": "a\tb"})
    with pytest.raises(DataError, match=r"the capability name 'x.*characters"):
        parse_group(row | {"capabilities": {"x" * 200: [1, 2]}})
    path = write_rows([row | {"task": "Code & Math"}, row | {"task": ""}, row | {"task": "a\tb"}])
    result = data_statistics([path])
    assert list(result["tasks"]) == ["(no task)", "Code & Math"]
    assert len(result["bad"]) == 1
