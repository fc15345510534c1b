"""`dmoerm label`: from data to a label file, its report, and a model trained on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    result = CliRunner(env=WIDE).invoke(app, ["label", *map(str, arguments)])
    assert (result.exit_code != 0) == fails, result.output
    assert "very-secret" not in result.output
    return result


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Groups of two tasks with one or two capabilities each; their taxonomy lies beside them."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    groups = tiny_groups()
    (tmp_path / "data.jsonl").write_text("".join(group.model_dump_json() + "\n" for group in groups))
    (tmp_path / "taxonomy.yaml").write_text(draft_taxonomy(groups, "tiny").to_yaml())
    return tmp_path / "data.jsonl"


def options(rows: Path, server: FakeJudge | None = None, limit: int = 40) -> tuple[object, ...]:
    files = ("--taxonomy", rows.with_name("taxonomy.yaml"), "--out", rows.with_name("labels.parquet"))
    return (rows, *files, "--model", "judge", "--limit", limit, *(("--base-url", server.url) if server else ()))


def counts(output: str) -> tuple[int, int]:
    """Return how many calls a run has, and how many of them were answered before."""
    match = re.search(r"(\d+) calls, (\d+) of them already answered", output)
    assert match, output
    return int(match[1]), int(match[2])


def test_from_data_to_labels_and_their_report(rows, tmp_path) -> None:
    out = tmp_path / "labels.parquet"
    with FakeJudge(0.1, (*TRANSIENT, *FINAL)) as server:
        first = run(*options(rows, server))
        paid = sum(server.paid.values())
        again = run("run", *options(rows, server))
        assert sum(server.paid.values()) == paid
    labels = read_labels(out)
    assert counts(first.output) == (2 * len(labels), 0)
    assert counts(again.output)[1] > 0.9 * 2 * len(labels)
    assert f"{len(labels)} labels" in first.output
    merged = ("--consensus", tmp_path / "merged.parquet", "--json", tmp_path / "q.json")
    report = run("report", out, "--data", rows, *merged)
    for words in ("consistency", "κ both", "judge: estimated accuracy", "with fewer than three judges"):
        assert words in report.output
    quality = json.loads((tmp_path / "q.json").read_text())["qualities"]
    pairs = [q["pairs"] for q in quality if q["capability"] != "all capabilities" and q["judge"] == "judge"]
    assert sum(pairs) == len(labels)
    assert {label.judge for label in read_labels(tmp_path / "merged.parquet")} == {"consensus"}


@pytest.fixture
def labeled_config(rows, tmp_path, tiny_backbone) -> Config:
    """Settings whose capability labels are a judge's alone."""
    with FakeJudge() as server:
        run(*options(rows, server), "--seed", 0)
    config = make_tiny_config(tiny_backbone, tmp_path)
    labels = {"files": (str(rows),), "capability_labels": (str(tmp_path / "labels.parquet"),), "human_labels": False}
    return config.model_copy(update={"data": config.data.model_copy(update=labels)})


def test_training_reads_the_labels(labeled_config) -> None:
    splits = load_splits(labeled_config)
    assert any(group.judge_labels for group in splits.train)
    assert not any(group.capabilities for group in splits.train)


@pytest.mark.slow
def test_a_model_is_trained_on_the_labels(labeled_config, tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(labeled_config))
    assert CliRunner(env=WIDE).invoke(app, ["train", str(tmp_path / "run.yaml")]).exit_code == 0
    assert json.loads((Path(labeled_config.output) / "results.json").read_text())["capabilities"]


def test_a_dry_run_asks_nothing(rows, tmp_path) -> None:
    with FakeJudge() as server:
        result = run(*options(rows, server, limit=5), "--price", "3e3,0", "--dry-run")
        assert not server.headers
    assert counts(result.output)[0] >= 10
    assert float(re.findall(r"at most ([\d.]+)$", result.output.strip())[0]) > 0
    assert not (tmp_path / "labels.parquet").exists()


def test_the_whole_preference_is_asked(rows, tmp_path) -> None:
    with FakeJudge() as server:
        run(*options(rows, server, limit=6), "--overall", "--seed", 0)
    labels = read_labels(tmp_path / "labels.parquet")
    assert [(label.judge, label.capability) for label in labels] == [("judge", "overall")] * 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "require a taxonomy"),
        (("--overall", "--request-field", "top_k"), "'top_k' is invalid; write NAME=JSON, for example 'top_k=1'"),
        (("--overall", "--request-field", "effort=low"), "for example 'effort=1' or 'effort=\"text\"'"),
        (("--overall", "--request-field", "model=1"), "the request field 'model' cannot be set"),
        (("--overall", "--max-cost", 1), "set --price"),
        (("--overall", "--price", "3"), "write two numbers, as in 0.15,0.60"),
        (("--overall", "--base-url", "nowhere"), "base_url"),
    ],
)
def test_invalid_options_are_refused(rows, tmp_path, given, message) -> None:
    assert message in run(rows, "--model", "judge", "--out", tmp_path / "l.parquet", *given, fails=True).output


def change(rows: Path, row: Callable[[dict], dict], tasks: Callable[[dict], dict]) -> None:
    """Change the rows, and the taxonomy's tasks."""
    rows.write_text("".join(json.dumps(row(json.loads(line))) + "\n" for line in rows.read_text().splitlines()))
    taxonomy = rows.with_name("taxonomy.yaml")
    content = yaml.safe_load(taxonomy.read_text())
    taxonomy.write_text(yaml.safe_dump(content | {"tasks": tasks(content["tasks"])}))


def unchanged(content: Any) -> Any:
    return content


def without_task(row: dict) -> dict:
    return {**row, "task": None}


@pytest.mark.parametrize(
    ("row", "tasks", "cause"),
    [
        (unchanged, lambda tasks: {f"other_{k}": v for k, v in tasks.items()}, "12 of 24 groups have the task 'chitc"),
        (without_task, unchanged, "24 of 24 groups have no task; add the field task, name one with --task,"),
        (
            unchanged,
            lambda tasks: {k: {**v, "capabilities": {}} for k, v in tasks.items()},
            "12 of 24 groups have the task 'chitchat', for which the taxonomy lists no capabilities; write some",
        ),
    ],
)
def test_why_there_are_no_questions(rows, row, tasks, cause) -> None:
    change(rows, row, tasks)
    assert f"no questions to ask: {cause}" in run(*options(rows), fails=True).output


def test_groups_without_tasks_have_the_only_task_of_the_taxonomy(rows) -> None:
    change(rows, without_task, lambda tasks: {"advice": tasks["chitchat"]})
    output = run(*options(rows), "--dry-run").output
    assert "no row names a task: all have the taxonomy's only task, 'advice'" in output
    assert counts(output)[0] > 0


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        pytest.param({"fatal": 401}, "Incorrect API key.*OPENAI_API_KEY", marks=pytest.mark.slow),
        ({"rate": 1.0, "faults": ["unreadable"]}, r"error: \d+ answers in a row are unusable; .*'I cannot decide'"),
        ({"rejects": ["max_tokens"]}, "rejects the request field 'max_tokens'.*--request-field"),
    ],
)
def test_an_error_ends_the_run_in_one_line_and_what_was_answered_is_kept(rows, tmp_path, judge, message) -> None:
    with FakeJudge(**judge) as server:
        result = run(*options(rows, server), "--concurrency", 2, fails=True)
        calls = len(server.bodies) if "faults" in judge else 0
        assert re.search(message, result.output)
        assert "0 of them usable" in result.output
        assert not any(label.consistent for label in read_labels(tmp_path / "labels.parquet"))
        server.rate, server.fatal, server.rejects = 0, 0, []
        assert counts(run(*options(rows, server)).output)[1] == calls
    assert all(label.soft for label in read_labels(tmp_path / "labels.parquet")) == ("faults" not in judge)


@pytest.fixture
def one_label(tmp_path) -> Path:
    """The file of one label, written as docs/labels.md shows."""
    code = re.search(r"Recorded verdicts.*?```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1]
    code = re.sub(r"group = read_groups.*", "", code).replace('Path("labels.parquet")', "out")
    exec(code, {"group": tiny_groups()[0], "out": tmp_path / "one.parquet"})
    return tmp_path / "one.parquet"


def test_labels_of_other_texts_are_refused(rows, one_label, tmp_path, tiny_backbone) -> None:
    assert "do not match" not in run("report", one_label, "--data", rows).output
    change(rows, lambda row: {**row, "prompt": f"Another {row['id']}"}, unchanged)
    result = run("report", one_label, "--data", rows)
    assert "1 of 1 labels do not match a group in the data by id and texts" in result.output
    settings = yaml.safe_load(dump_config(make_tiny_config(tiny_backbone, tmp_path)))
    settings["data"] |= {"files": [str(rows)], "capability_labels": [str(one_label)]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    trained = CliRunner(env=WIDE).invoke(app, ["train", str(tmp_path / "run.yaml")])
    assert trained.exit_code == 1
    assert re.search(r"no label is usable: of (\d+) labels, \1 have a group's id, 0 also its texts", trained.output)
