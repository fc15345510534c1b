import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from dmoerm.cli import app

Write = Callable[..., Path]
ROW = {"task": "chat", "prompt": "Hi [b]", "responses": ["a", "b"], "scores": [1, 0], "capabilities": {"logic": [1, 0]}}
WIDE = {"COLUMNS": "200", "TERM": "dumb"}


def run(*arguments: object):
    return CliRunner(env=WIDE).invoke(app, ["data", *map(str, arguments)])


def test_good_data(write_rows: Write, tmp_path: Path) -> None:
    result = run("check", write_rows([ROW]), "--json", tmp_path / "new" / "found.json")
    assert result.exit_code == 0, result.output
    for title in ("Sources", "Tasks", "Capabilities", "Lengths in words", "logic"):
        assert title in result.output
    assert "Bad rows" not in result.output
    assert json.loads((tmp_path / "new" / "found.json").read_text())["tasks"]["chat"]["pairs"] == 1


def test_bad_rows_are_all_shown_and_exit_with_1(write_rows: Write) -> None:
    path = write_rows([ROW, {"prompt": "p", "responses": ["[red]", ""]}, {"prompt": 3}])
    result = run("check", path)
    assert result.exit_code == 1
    assert "Tasks" in result.output
    folded = "".join(result.output.split())
    assert "rows.jsonl:2" in folded
    assert "rows.jsonl:3" in folded


def test_ten_bad_rows_are_shown_and_the_others_counted(write_rows: Write, tmp_path: Path) -> None:
    bad = [{"prompt": i, "responses": ["a", "b"]} for i in range(13)]
    result = run("check", write_rows([ROW, *bad]), "--json", tmp_path / "found.json")
    assert result.output.count("rows.jsonl:") == 10
    assert "and 3 more bad rows" in result.output
    assert len(json.loads((tmp_path / "found.json").read_text())["bad"]) == 13


def test_rows_with_the_same_error_are_one_line(write_rows: Write, tmp_path: Path) -> None:
    result = run("check", write_rows([{"text": "a"}] * 13), "--json", tmp_path / "found.json")
    assert result.output.count("the row has an unknown format") == 1
    assert "10,…(13rows)" in "".join(re.sub("[│ \n]", "", result.output).split())
    assert "more bad rows" not in result.output
    assert [row["line"] for row in json.loads((tmp_path / "found.json").read_text())["bad"]] == [*range(1, 14)]


def test_the_detected_format_is_named(write_rows: Write, tmp_path: Path) -> None:
    files = write_rows([ROW], "a.jsonl"), write_rows([{"prompt": "p", "chosen": "a", "rejected": "b"}], "b.jsonl")
    result = run("check", *files, write_rows([{"text": "a"}], "c.jsonl"), "--json", tmp_path / "found.json")
    shown = [line.split("│")[2].strip() for line in result.output.splitlines() if re.search(r"[abc]\.jsonl +│", line)]
    assert shown[:3] == ["native", "trl", "–"]
    sources = json.loads((tmp_path / "found.json").read_text())["sources"]
    assert [source["format"] for source in sources] == ["native", "trl", None]


def test_unknown_columns_are_named_and_counted(write_rows: Write) -> None:
    result = run("check", write_rows([ROW | {"colour": "red"}, ROW | {"colour": None}, ROW | {"colour": 1}]))
    assert result.exit_code == 0
    assert [line.split()[-2] for line in result.output.splitlines() if "unknown column: colour" in line] == ["2"]


def test_wrong_settings_are_said_in_a_sentence(write_rows: Write, tmp_path: Path) -> None:
    result = run("check", write_rows([ROW]), "--format", "csv")
    assert result.exit_code == 1
    assert "format 'csv' is unknown" in result.output
    (tmp_path / "run.yaml").write_text(f"backbone: {{path: {tmp_path / 'none'}}}")
    result = run("check", write_rows([ROW]), "--config", tmp_path / "run.yaml")
    assert result.exit_code == 1
    assert "tokenizer cannot be loaded" in result.output


def test_what_a_config_would_truncate_is_counted(write_rows: Write, tmp_path: Path, tiny_backbone: str) -> None:
    long = "because " * 60
    rows = [ROW, ROW | {"responses": [long + "it rains.", long + "it snows."]}]
    (tmp_path / "run.yaml").write_text(f"backbone: {{path: {tiny_backbone}}}\nencoding: {{max_length: 60}}\n")
    result = run("check", write_rows(rows), "--config", tmp_path / "run.yaml", "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert "Too long for the model" in result.output
    results = json.loads((tmp_path / "found.json").read_text())
    assert results["truncation"] == {"chat": {"responses": 4, "truncated": 2, "identical_pairs": 1}}
    assert results["lengths"]["unit"] == "tokens"


def test_rows_are_read_as_the_options_say(tmp_path: Path) -> None:
    path, found = tmp_path / "a.csv", tmp_path / "found.json"
    path.write_text("Question,best,worst\nHi,a,b\nHo,a,\n")
    options = ("--map", "prompt=Question,chosen=best", "--map", "rejected=worst", "--task", "chat", "--json", found)
    assert run("check", path, *options).exit_code == 1
    result = run("check", path, *options, "--skip-bad")
    assert result.exit_code == 0, result.output
    results = json.loads(found.read_text())
    assert (list(results["tasks"]), len(results["bad"])) == (["chat"], 1)
    assert "rejected (column 'worst')" in result.output
    assert "did you mean prompt?" in run("check", path, "--map", "promt=Question").output


def test_the_module_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets", "pyarrow")
    code = f"import sys, dmoerm.cli.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_without_tasks_are_named_before_training(write_rows: Write) -> None:
    free = ROW | {"task": None}
    assert "gives all rows the task 'all_prompts'" in run("check", write_rows([free, free])).output
    assert "1 groups have no task: the router assigns one" in run("check", write_rows([ROW, free])).output
    assert "no task" not in run("check", write_rows([free]), "--task", "chat").output


def test_a_result_is_not_written_to_a_file_named_as_the_screen(write_rows: Write) -> None:
    result = run("check", write_rows([ROW]), "--json", "-")
    assert result.exit_code == 2
    assert "name a file: standard output has the tables" in result.output
