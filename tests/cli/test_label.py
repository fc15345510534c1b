"""`dmoerm label`: from data to a label file, its report, and a model trained on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fake_judge import FINAL, TRANSIENT, FakeJudge
from tiny import make_tiny_config, tiny_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import dump_config
from dmoerm.labels import read_labels
from dmoerm.taxonomy import draft_taxonomy

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


def test_from_data_to_a_trained_model(data, tmp_path, tiny_backbone) -> None:
    rows, taxonomy = data
    out = tmp_path / "labels.parquet"
    with FakeJudge(0.1, (*TRANSIENT, *FINAL)) as server:
        options = ("--taxonomy", taxonomy, "--model", "judge", "--base-url", server.url, "--out", out)
        first = run("label", rows, *options, "--json", tmp_path / "run.json")
        paid = sum(server.paid.values())
        run("label", "run", rows, *options)
        assert sum(server.paid.values()) <= paid + first.output.count("tries")
    tally = json.loads((tmp_path / "run.json").read_text())["tally"]
    labels = read_labels(out)
    assert tally["answered"] + tally["refused"] + tally["failed"] + tally["unanswered"] == 2 * len(labels)
    assert f"{len(labels)} labels" in first.output
    report = run("label", "report", out, "--data", rows, "--json", tmp_path / "q.json", "--plot", tmp_path / "q.svg")
    assert "consistency" in report.output
    assert "κ both" in report.output
    quality = json.loads((tmp_path / "q.json").read_text())["qualities"]
    assert sum(q["pairs"] for q in quality if q["capability"] != "all capabilities") == len(labels)

    settings = yaml.safe_load(dump_config(make_tiny_config(tiny_backbone, tmp_path)))
    settings["data"] |= {"files": [str(rows)], "capability_labels": str(out), "people_grades": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    run("train", tmp_path / "run.yaml")
    results = json.loads((Path(settings["output"]) / "results.json").read_text())
    assert results["capabilities"]


def test_a_dry_run_asks_nothing(data, tmp_path) -> None:
    rows, taxonomy = data
    with FakeJudge() as server:
        options = ("--taxonomy", taxonomy, "--model", "judge", "--base-url", server.url, "--prompt-price", 3)
        options += ("--out", tmp_path / "labels.parquet")
        result = run("label", rows, *options, "--dry-run", "--limit", 5, "--json", tmp_path / "run.json")
        assert not server.headers
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["calls"] == found["open"] > 0
    assert found["expected_cost"] > 0
    assert "prompt tokens" in result.output
    assert not (tmp_path / "labels.parquet").exists()


def test_the_whole_preference_is_asked_with_examples(data, tmp_path) -> None:
    rows, _ = data
    out = tmp_path / "labels.parquet"
    with FakeJudge() as server:
        options = ("--model", "judge", "--base-url", server.url, "--out", out, "--limit", 6, "--sample", "random")
        run("label", rows, "--overall", "--shots", 2, "--examples", rows, *options)
    assert {(label.judge, label.capability) for label in read_labels(out)} == {("judge/2-shot", "overall")}
    assert len(read_labels(out)) == 6


def test_what_a_model_is_unsure_of_comes_first(data, tmp_path, trained_run) -> None:
    rows, taxonomy = data
    with FakeJudge() as server:
        options = ("--taxonomy", taxonomy, "--model", "judge", "--base-url", server.url)
        asked = {}
        for sample in ("given", "uncertain"):
            out = tmp_path / f"{sample}.parquet"
            more = ("--sample", sample, "--reward-model", trained_run.folder, "--limit", 4, "--out", out)
            run("label", rows, *options, *more)
            asked[sample] = {(label.group, label.first, label.second) for label in read_labels(out)}
    assert asked["given"] != asked["uncertain"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "taxonomy"),
        (("--overall", "--max-cost", 1), "--prompt-price"),
        (("--overall", "--shots", 2), "--examples"),
        (("--overall", "--sample", "uncertain"), "--reward-model"),
        (("--overall", "--base-url", "nowhere"), "base_url"),
    ],
)
def test_what_cannot_be_is_said(data, tmp_path, options, message) -> None:
    rows, _ = data
    more = ("--model", "judge", "--out", tmp_path / "l.parquet")
    assert message in run("label", rows, *more, *options, fails=True).output


def test_data_of_other_tasks_than_the_taxonomys_have_nothing_to_ask(data, tmp_path) -> None:
    rows, taxonomy = data
    content = yaml.safe_load(taxonomy.read_text())
    content["tasks"] = {f"other_{name}": task for name, task in content["tasks"].items()}
    taxonomy.write_text(yaml.safe_dump(content))
    options = ("--taxonomy", taxonomy, "--model", "judge", "--out", tmp_path / "l.parquet")
    assert "nothing to ask" in run("label", rows, *options, fails=True).output


def test_an_endpoint_that_never_answers_ends_the_run(data, tmp_path) -> None:
    rows, taxonomy = data
    options = ("--taxonomy", taxonomy, "--model", "judge", "--out", tmp_path / "l.parquet", "--retries", 0)
    result = run("label", rows, *options, "--base-url", "http://127.0.0.1:9/v1", fails=True)
    assert "calls in a row had no answer" in result.output


def test_a_wrong_key_ends_with_one_line_and_what_was_answered_is_kept(data, tmp_path) -> None:
    rows, taxonomy = data
    with FakeJudge(fatal=401) as server:
        options = ("--taxonomy", taxonomy, "--model", "judge", "--base-url", server.url)
        result = run("label", rows, *options, "--out", tmp_path / "l.parquet", fails=True)
    assert "OPENAI_API_KEY" in result.output
    assert {label.given for label in read_labels(tmp_path / "l.parquet")} == {"open"}


def test_labels_of_other_data_are_refused(data, tmp_path, write_rows, tiny_backbone) -> None:
    rows, _ = data
    verdicts = write_rows([{"id": tiny_groups()[0].id, "order": "given", "preferred": {"logic": 0}}], "verdicts.jsonl")
    out = tmp_path / "labels.parquet"
    pair = {"pair": [0, 1]} if len(tiny_groups()[0].responses) > 2 else {}
    write_rows([{"id": tiny_groups()[0].id, "order": "given", "preferred": {"logic": 0}, **pair}], "verdicts.jsonl")
    run("label", "import", verdicts, "--data", rows, "--out", out)
    settings = yaml.safe_load(dump_config(make_tiny_config(tiny_backbone, tmp_path)))
    settings["data"] |= {"testbed_prompts": 4, "files": [], "capability_labels": [str(out)]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert "no label fits a group" in run("train", tmp_path / "run.yaml", fails=True).output
