"""Names with spaces, slashes and accents, from the data to the scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_results import read_results
from tiny import make_tiny_config, tiny_groups, write_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import dump_config
from dmoerm.model import DMoERM
from dmoerm.names import folder_name

TASKS = {"chitchat": "Code & Math", "objective_qa": "[b]../up.$1$"}
CAPABILITIES = {"empathy": "naïve/slash", "proactivity": "naïve", "logic": "Logic", "informativeness": "逻辑"}


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(argument) for argument in arguments])


def renamed_groups() -> list:
    groups = []
    for group in tiny_groups(8):
        capabilities = {CAPABILITIES.get(name, name): grades for name, grades in group.capabilities.items()}
        groups.append(group.model_copy(update={"task": TASKS[group.task or ""], "capabilities": capabilities}))
    return groups


@pytest.fixture(scope="module")
def trained(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    data = write_groups(renamed_groups(), folder / "renamed.jsonl")
    assert run("data", "check", data).exit_code == 0
    config = make_tiny_config(tiny_backbone, folder, data={"files": [data]})
    (folder / "mine.yaml").write_text(dump_config(config))
    result = run("train", folder / "mine.yaml")
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_the_checkpoint_has_derived_folder_names_and_loads(trained: Path) -> None:
    names = {path.name for path in (trained / "model" / "tasks").iterdir()}
    assert names == {folder_name(task) for task in TASKS.values()}
    adapter = trained / "model" / "tasks" / folder_name("Code & Math") / "experts" / folder_name("naïve/slash")
    assert (adapter / "adapter_model.safetensors").is_file()
    model = DMoERM.from_pretrained(trained / "model")
    (score,) = model.score("Why?", ["No."], task="Code & Math")
    assert "naïve/slash" in score.capabilities
    assert {path.name for path in (trained / "steps" / "phase1").iterdir()} == names


def test_train_again_score_and_eval(trained: Path, tmp_path: Path) -> None:
    again = run("train", trained / "config.yaml")
    assert again.exit_code == 0, again.output
    result = run("eval", trained, "--json", tmp_path / "results.json")
    assert result.exit_code == 0, result.output
    assert "Code & Math" in result.output
    assert set(read_results(tmp_path / "results.json").tasks) == set(TASKS.values())
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Why?", "responses": ["No.", "Yes."], "task": "Code & Math"}) + "\n")
    result = run("score", trained, "--input", rows, "--output", tmp_path / "scores.jsonl")
    assert result.exit_code == 0, result.output
    assert "naïve/slash" in (tmp_path / "scores.jsonl").read_text(encoding="utf-8")
