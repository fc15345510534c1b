"""`dmoerm label`: from data to a label file, its report, and a model trained on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from fake_judge import FINAL, TRANSIENT, FakeJudge
from tiny import make_tiny_config, tiny_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import Config, dump_config
from dmoerm.data.splits import load_splits
from dmoerm.labels import read_labels
from dmoerm.taxonomy import draft_taxonomy

DOCS = Path(__file__).parents[2] / "docs" / "labels.md"
WIDE = {"COLUMNS": "200", "TERM": "dumb", "OPENAI_API_KEY": "sk-very-secret-0123456789"}


def run(*arguments: object, fails: bool = False):
    result = CliRunner(env=WIDE).invoke(app, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) == fails, result.output
    assert "very-secret" not in result.output
    return result


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Groups of two tasks with one or two capabilities each, and their taxonomy."""
    groups = tiny_groups()
    rows, taxonomy = tmp_path / "data.jsonl", tmp_path / "taxonomy.yaml"
    rows.write_text("".join(group.model_dump_json() + "\n" for group in groups))
    taxonomy.write_text(draft_taxonomy(groups, "tiny").to_yaml())
    return rows, taxonomy


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries of the openai library without its pauses."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def counts(output: str) -> tuple[int, int]:
    """Return how many calls a run has, and how many of them were answered before."""
    match = re.search(r"(\d+) calls, (\d+) of them already answered", output)
    assert match, output
    return int(match[1]), int(match[2])


def test_from_data_to_labels_and_their_report(data, tmp_path) -> None:
    rows, taxonomy = data
    out = tmp_path / "labels.parquet"
    with FakeJudge(0.1, (*TRANSIENT, *FINAL)) as server:
        options = ("--taxonomy", taxonomy, "--model", "judge", "--base-url", server.url, "--out", out)
        options += ("--limit", 40)
        first = run("label", rows, *options)
        paid = sum(server.paid.values())
        again = run("label", "run", rows, *options)
        assert sum(server.paid.values()) == paid
    labels = read_labels(out)
    assert counts(first.output) == (2 * len(labels), 0)
    assert counts(again.output)[1] > 0.9 * 2 * len(labels)
    assert f"{len(labels)} labels" in first.output
    report = run("label", "report", out, "--data", rows, "--json", tmp_path / "q.json")
    assert "consistency" in report.output
    assert "κ both" in report.output
    quality = json.loads((tmp_path / "q.json").read_text())["qualities"]
    assert sum(q["pairs"] for q in quality if q["capability"] != "all capabilities") == len(labels)


@pytest.fixture
def labeled_config(data, tmp_path, tiny_backbone) -> Config:
    """Settings whose capability labels are a judge's alone."""
    rows, taxonomy = data
    out = tmp_path / "labels.parquet"
    with FakeJudge() as server:
        options = ("--model", "judge", "--base-url", server.url, "--out", out, "--limit", 40)
        run("label", rows, "--taxonomy", taxonomy, *options, "--seed", 0)
    config = make_tiny_config(tiny_backbone, tmp_path)
    labels = {"files": (str(rows),), "capability_labels": (str(out),), "human_labels": False}
    return config.model_copy(update={"data": config.data.model_copy(update=labels)})


def test_training_reads_the_labels(labeled_config) -> None:
    splits = load_splits(labeled_config)
    assert any(group.judge_labels for group in splits.train)
    assert not any(group.capabilities for group in splits.train)


@pytest.mark.slow
def test_a_model_is_trained_on_the_labels(labeled_config, tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(labeled_config))
    run("train", tmp_path / "run.yaml")
    results = json.loads((Path(labeled_config.output) / "results.json").read_text())
    assert results["capabilities"]


def test_a_dry_run_asks_nothing(data, tmp_path) -> None:
    rows, taxonomy = data
    with FakeJudge() as server:
        options = ("--taxonomy", taxonomy, "--model", "judge", "--base-url", server.url, "--price", "3e3,0")
        options += ("--out", tmp_path / "labels.parquet", "--limit", 5)
        result = run("label", rows, *options, "--dry-run")
        assert not server.headers
    assert counts(result.output)[0] >= 10
    assert float(re.findall(r"at most ([\d.]+)$", result.output.strip())[0]) > 0
    assert not (tmp_path / "labels.parquet").exists()


def test_the_whole_preference_is_asked(data, tmp_path) -> None:
    rows, _ = data
    out = tmp_path / "labels.parquet"
    with FakeJudge() as server:
        options = ("--model", "judge", "--base-url", server.url, "--out", out, "--limit", 6, "--seed", 0)
        run("label", rows, "--overall", *options)
    assert {(label.judge, label.capability) for label in read_labels(out)} == {("judge", "overall")}
    assert len(read_labels(out)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "require a taxonomy"),
        (
            ("--overall", "--base-url", "http://127.0.0.1:9/v1"),
            "20 calls in a row have no answer; the last: Connection",
        ),
        (("--overall", "--request-field", "top_k"), "'top_k' is invalid; write NAME=JSON, for example 'top_k=1'"),
        (("--overall", "--request-field", "effort=low"), "for example 'effort=1' or 'effort=\"text\"'"),
        (("--overall", "--request-field", "model=1"), "the request field 'model' cannot be set"),
        (("--overall", "--max-cost", 1), "set --price"),
        (("--overall", "--price", "3"), "write two numbers, as in 0.15,0.60"),
        (("--overall", "--base-url", "nowhere"), "base_url"),
    ],
)
def test_invalid_options_are_refused(data, tmp_path, options, message) -> None:
    rows, _ = data
    more = ("--model", "judge", "--out", tmp_path / "l.parquet")
    assert message in run("label", rows, *more, *options, fails=True).output


def without_task(row: dict) -> dict:
    return {**row, "task": None}


@pytest.mark.parametrize(
    ("change_row", "change_tasks", "cause"),
    [
        (
            None,
            lambda tasks: {f"other_{k}": v for k, v in tasks.items()},
            "12 of 24 groups have the task 'chitchat', which is",
        ),
        (without_task, lambda tasks: tasks, "24 of 24 groups have no task; add the field task, name one with --task,"),
        (
            None,
            lambda tasks: {**tasks, **{k: {**v, "capabilities": {}} for k, v in tasks.items()}},
            "12 of 24 groups have the task 'chitchat', for which the taxonomy lists no capabilities; write some",
        ),
    ],
)
def test_why_there_are_no_questions(data, tmp_path, change_row, change_tasks, cause) -> None:
    rows, taxonomy = data
    content = yaml.safe_load(taxonomy.read_text())
    content["tasks"] = change_tasks(content["tasks"])
    taxonomy.write_text(yaml.safe_dump(content))
    if change_row:
        changed = [change_row(json.loads(line)) for line in rows.read_text().splitlines()]
        rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    options = ("--taxonomy", taxonomy, "--model", "judge", "--out", tmp_path / "l.parquet")
    assert f"no questions to ask: {cause}" in run("label", rows, *options, fails=True).output


def test_groups_without_tasks_have_the_only_task_of_the_taxonomy(data, tmp_path) -> None:
    rows, taxonomy = data
    content = yaml.safe_load(taxonomy.read_text())
    content["tasks"] = {"advice": content["tasks"]["chitchat"]}
    taxonomy.write_text(yaml.safe_dump(content))
    free = [without_task(json.loads(line)) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in free))
    options = ("--taxonomy", taxonomy, "--model", "judge", "--out", tmp_path / "l.parquet", "--dry-run")
    output = run("label", rows, *options).output
    assert "no row names a task: all have the taxonomy's only task, 'advice'" in output
    assert " 0 calls" not in output


def test_a_judge_that_answers_in_prose_stops_the_run_and_one_answer_is_shown(data, tmp_path) -> None:
    rows, taxonomy = data
    with FakeJudge(1.0, ["unreadable"]) as server:
        options = ("--taxonomy", taxonomy, "--model", "judge", "--base-url", server.url, "--concurrency", 2)
        options += ("--limit", 30, "--out", tmp_path / "l.parquet")
        result = run("label", rows, *options, fails=True)
        assert result.exit_code == 1
        calls = len(server.bodies)
        assert 20 <= calls <= 40
        assert re.search(r"error: \d+ answers in a row are unusable; the last one is 'I cannot decide'", result.output)
        assert "0 of them usable" in result.output
        server.faults, server.rate = [], 0
        assert counts(run("label", rows, *options).output)[1] == calls


def test_a_reasoning_model_is_asked_with_the_fields_that_it_accepts(data, tmp_path) -> None:
    rows, taxonomy = data
    with FakeJudge(rejects=["max_tokens", "temperature", "logprobs"], reasoning="<think>x</think>") as server:
        options = ("--taxonomy", taxonomy, "--model", "o", "--base-url", server.url, "--out", tmp_path / "l.parquet")
        assert "--request-field" in run("label", rows, *options, "--limit", 3, fails=True).output
        given = ("temperature=null", "max_completion_tokens=4096", "logprobs=null", 'reasoning_effort="low"')
        fields = [word for field in given for word in ("--request-field", field)]
        run("label", rows, *options, "--limit", 3, *fields)
        assert server.bodies[-1]["reasoning_effort"] == "low"
    assert all(label.consistent for label in read_labels(tmp_path / "l.parquet"))


@pytest.fixture
def one_label(tmp_path) -> Path:
    """The file of one label, written as docs/labels.md shows."""
    code = re.search(r"Recorded verdicts.*?```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1]
    group, out = tiny_groups()[0], tmp_path / "labels.parquet"
    code = re.sub(r"group = Group.*", "", code).replace('Path("labels.parquet")', "out")
    exec(code, {"group": group, "out": out})
    return out


def test_a_report_on_other_data_counts_what_does_not_match(data, one_label, write_rows) -> None:
    rows, _ = data
    assert "do not match" not in run("label", "report", one_label, "--data", rows).output
    other = write_rows([{**json.loads(rows.read_text().splitlines()[0]), "prompt": "Another."}], "other.jsonl")
    result = run("label", "report", one_label, "--data", other)
    assert "1 of 1 labels do not match a group in the data by id and texts" in result.output


def test_a_wrong_key_ends_with_one_line_and_what_was_answered_is_kept(data, tmp_path) -> None:
    rows, taxonomy = data
    with FakeJudge(fatal=401) as server:
        options = ("--taxonomy", taxonomy, "--model", "judge", "--base-url", server.url)
        result = run("label", rows, *options, "--out", tmp_path / "l.parquet", fails=True)
    assert "OPENAI_API_KEY" in result.output
    assert {label.given for label in read_labels(tmp_path / "l.parquet")} == {"open"}


def test_labels_of_other_data_are_refused(data, tmp_path, one_label, write_rows, tiny_backbone) -> None:
    rows, _ = data
    changed = [{**json.loads(line), "prompt": f"Prompt {i}"} for i, line in enumerate(rows.read_text().splitlines())]
    settings = yaml.safe_load(dump_config(make_tiny_config(tiny_backbone, tmp_path)))
    settings["data"] |= {"files": [str(write_rows(changed, "other.jsonl"))], "capability_labels": [str(one_label)]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    output = run("train", tmp_path / "run.yaml", fails=True).output
    assert re.search(r"no label is usable: of (\d+) labels, \1 have a group's id, 0 also its texts", output)
