import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.data import formats
from dmoerm.data.formats import detect_format, find_formats, named_format
from dmoerm.errors import ConfigError, DataError
from dmoerm.schema import Group, Pair

ReadOne = Callable[..., Group]
USER = {"role": "user", "content": "Hi"}


ROWS: dict[str, dict[str, Any]] = {
    "native": {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 0]},
    "mtmc": {"label": "闲聊", "src": ["你好"], "tgt": [], "response": ["好", "不好"], "rank": [1, 2]},
    "ultrafeedback": {
        "instruction": "Hi",
        "completions": [{"response": "a", "overall_score": 8}, {"response": "b", "overall_score": 3}],
    },
    "helpsteer": {"prompt": "Hi", "response": "a", "helpfulness": 4},
    "helpsteer3": {"domain": "stem", "context": [USER], "response1": "a", "response2": "b", "overall_preference": -2},
    "rewardbench": {"prompt": "Hi", "chosen": "a", "rejected": "b", "subset": "hep-cpp", "id": 7},
    "hh": {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
    "trl": {"prompt": "Hi", "chosen": "a", "rejected": "b"},
    "arena": {
        "question_id": "58210e39",
        "model_a": "chatglm-6b",
        "model_b": "koala-13b",
        "winner": "model_a",
        "conversation_a": [USER, {"role": "assistant", "content": "a"}],
        "conversation_b": [USER, {"role": "assistant", "content": "b"}],
        "turn": 1,
    },
    "votes": {"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": "A"},
    "shp": {"post_id": "x", "domain": "askculinary_train", "history": "Hi", "human_ref_A": "a", "human_ref_B": "b"}
    | {"labels": 1, "score_A": 52, "score_B": 54},
    "kto": {"prompt": "Hi", "completion": "a", "label": True},
    "nectar": {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [{"answer": "a", "model": "gpt-4", "rank": 1.0}, {"answer": "b", "model": "x", "rank": 2.0}],
        "turns": 1,
    },
    "orca": {"system": "Be brief.", "question": "Hi", "chosen": "a", "rejected": "b"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "argilla": {
        "fields": {"prompt": "Hi", "response_1": "a", "response_2": "b"},
        "responses": {"preference": [{"value": "response_1", "user_id": "u"}]},
    },
    "label-studio": {
        "data": {"prompt": "Hi", "text1": "a", "text2": "b"},
        "annotations": [
            {"result": [{"from_name": "pw", "to_name": "x,y", "type": "pairwise", "value": {"selected": "left"}}]}
        ],
    },
}
ONE_RESPONSE = {"helpsteer", "kto"}


@pytest.mark.parametrize("name", find_formats())
def test_the_format_is_detected_from_the_row(name: str) -> None:
    assert detect_format(ROWS[name]).name == name
    assert named_format(name) == detect_format(ROWS[name] | {"further": None})


@pytest.mark.parametrize("name", sorted(find_formats().keys() - ONE_RESPONSE))
def test_the_first_response_is_better_in_every_row_above(name: str, read_one: ReadOne) -> None:
    assert read_one(ROWS[name], format=name).pairs() == [Pair(0, 1)]


def test_unknown_formats_and_rows() -> None:
    with pytest.raises(ConfigError, match="'csv' is unknown; use one of auto, native"):
        named_format("csv")
    with pytest.raises(DataError, match=r"has an unknown format \(got \['question', 'answer'\]\)"):
        detect_format({"question": "Why?", "answer": "So."})


def test_native_takes_nulls_as_absent(read_one: ReadOne) -> None:
    row = {"id": 3, "task": None, "prompt": "Hi", "responses": ["a", "b"], "scores": None, "ranks": [2, 1]}
    group = read_one(row | {"capabilities": {"logic": [1, None], "empathy": None}, "annotators": None})
    assert group.id == "3"
    assert group.capabilities == {"logic": (1.0, None)}
    assert group.pairs() == [Pair(1, 0)]


@pytest.mark.parametrize(
    ("row", "misspelled", "meant"),
    [
        (ROWS["native"] | {"capabilites": {"logic": [1, 0]}}, "capabilites", "capabilities"),
        ({**ROWS["native"], "scores": None, "score": [1, 0]}, "score", "scores"),
        (ROWS["trl"] | {"Task": "chat"}, "Task", "task"),
    ],
)
def test_a_misspelled_column_is_an_error_with_a_hint(row: dict, misspelled: str, meant: str, read_rows) -> None:
    with pytest.raises(DataError, match=rf"{misspelled}: is an unknown column; did you mean '{meant}'"):
        read_rows(row)
    with pytest.raises(DataError, match=r"unknown format.*did you mean 'responses'"):
        read_rows({"prompt": "Hi", "reponses": ["a", "b"], "scores": [1, 0]})


def test_unknown_columns_are_counted_where_they_hold_a_value(read_rows) -> None:
    extra = {"colour": "red", "empty": None, "score": 3}
    assert read_rows(ROWS["native"] | extra, ROWS["native"] | {"colour": 1}).unknown_columns == {
        "colour": 2,
        "score": 1,
    }
    published = read_rows(ROWS["ultrafeedback"] | {"models": ["x"], "instructions": "y"})
    assert published.unknown_columns == {"models": 1, "instructions": 1}


NEW_FORMAT = """
from dmoerm.data.formats import Format, always, column, columns

FORMATS = (
    Format(
        "dummy",
        needs={"q", "good", "bad"},
        fields={"prompt": column("q"), "responses": columns("good", "bad"), "ranks": always([1, 2])},
    ),
)
"""


@pytest.mark.parametrize("options", [["--format", "dummy"], []])
def test_a_new_format_is_one_file(options, write_rows, read_one, tmp_path: Path, monkeypatch) -> None:
    row = {"q": "Hi", "good": "a", "bad": "b"}
    (tmp_path / "dummy.py").write_text(NEW_FORMAT)
    with monkeypatch.context() as patch:
        patch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
        assert read_one(row, format="dummy").pairs() == [Pair(0, 1)]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", "check", str(write_rows([row])), *options])
    sys.modules.pop("dmoerm.data.formats.dummy")
    assert result.exit_code == 0, result.output
    with pytest.raises(DataError, match="unknown format"):
        detect_format(row)
