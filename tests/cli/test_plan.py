"""`dmoerm plan`: the table, the JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from dmoerm.cli import app


def run(*arguments: str):
    return CliRunner(env={"COLUMNS": "140", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, ["plan", *arguments])


def test_a_plan_is_printed_and_written(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    gpus = ("--gpus", "8xH100", "--price", "2")
    result = run("qwen3-0.6b", *gpus, "--groups", "5000", "--scored", "2000000", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "train on 5,000 prompts with 2 responses" in result.output
    assert "score 2,000,000 responses" in result.output
    plan = json.loads(file.read_text())
    assert plan["machine"]["count"] == 8
    scoring = plan["scoring"]
    assert scoring["dollars"] == 8 * 2 * scoring["seconds"] / 3600
    assert f"{scoring['dollars']:,.2f}" in result.output
    assert plan["training"]["memory"] > plan["model"] > 1e9


def test_a_plan_of_a_tiny_backbone_on_this_cpu(tiny_backbone: str) -> None:
    result = run("fast", "--set", f"backbone.path={tiny_backbone}", "--gpus", "cpu", "--tflops", "0.01")
    assert result.exit_code == 0, result.output
    assert "0.01 TFLOP/s" in result.output


def test_what_does_not_fit_and_what_is_unknown() -> None:
    large = run("finetune", "--set", "backbone.path=meta-llama/Llama-3.1-8B-Instruct", "--gpus", "L4")
    assert large.exit_code == 0
    assert "does not fit: scoring needs" in large.output
    unknown = run("fast", "--gpus", "8xH10")
    assert unknown.exit_code == 1
    assert "did you mean H100?" in unknown.output
