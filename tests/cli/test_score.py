"""`dmoerm score` of one prompt; files are in test_workflow.py and tests/evaluation/test_scoring_files.py."""

import json

import pytest
from typer.testing import CliRunner

from dmoerm.cli import app

PAIR = ["--prompt", "I failed my exam.", "--response", "OK.", "--response", "Oh no! What happened?"]


def score(model, *options):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["score", str(model), *options])


def test_the_responses_to_one_prompt(trained_run, tmp_path):
    file = tmp_path / "scores.json"
    result = score(trained_run.folder, *PAIR, "--task", "chitchat", "--json", str(file))
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    expected = trained_run.model.score("I failed my exam.", ["OK.", "Oh no! What happened?"], "chitchat")
    assert [row["response"] for row in found["scores"]] == ["OK.", "Oh no! What happened?"]
    assert [row["reward"] for row in found["scores"]] == pytest.approx([each.reward for each in expected], abs=1e-5)
    first, second = expected
    assert result.stdout.index(f"{first.reward:+.2f}") < result.stdout.index(f"{second.reward:+.2f}"), "as given"
    better, other = (1, 2) if first.reward > second.reward else (2, 1)
    assert f"response {better} is better than response {other} by" in result.stdout
    assert all(name in result.stdout for name in first.contributions)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "nothing to score: give --input FILE"),
        (["--prompt", "Hi."], "--prompt and --response belong together"),
        (["--response", "Hi."], "--prompt and --response belong together"),
        ([*PAIR, "--input", "rows.jsonl"], "--input is for files of prompts"),
        ([*PAIR, "--best"], "--best is for files of prompts"),
        ([*PAIR, "--engine", "ray"], "--engine is for files of prompts"),
    ],
)
def test_options_that_do_not_fit_together(trained_run, options, reason):
    result = score(trained_run.folder, *options)
    assert result.exit_code == 1
    assert reason in result.output
