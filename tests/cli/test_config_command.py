"""`dmoerm config`: shipped configs, resolved settings, what a setting means."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import Config, load_config, shipped_configs

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def run(*arguments: str):
    return CliRunner(env=WIDE).invoke(app, ["config", *arguments])


def test_every_shipped_config_is_listed_with_its_purpose() -> None:
    shown = run("list").stdout
    rows = [line.split("│")[1:3] for line in shown.splitlines() if line.startswith("│")]
    purposes = {name.strip(): purpose.strip() for name, purpose in rows if name.strip()}
    assert purposes.keys() == shipped_configs().keys()
    assert all(len(purpose) > 30 for purpose in purposes.values())


def test_show_prints_all_settings_which_load_again(tmp_path: Path) -> None:
    shown = run("show", "human", "--set", "seed=7").stdout
    assert yaml.safe_load(shown)["phase2"]["l2"] == "auto"
    (tmp_path / "again.yaml").write_text(shown)
    assert load_config(tmp_path / "again.yaml") == load_config("human", ["seed=7"])


@pytest.mark.parametrize("name", ["data.files", "phase2.lora", "phase0.head_first", "seed"])
def test_docs_explains_a_setting_or_a_group(name: str) -> None:
    lines = run("docs", name).stdout.splitlines()
    assert lines[0].startswith(name)
    assert all(line.startswith((name, "    ")) for line in lines)
    assert all(after.startswith("    ") for line, after in itertools.pairwise(lines) if line.startswith(name))


def test_docs_explains_everything() -> None:
    shown = run("docs").stdout
    for name in Config().model_dump():
        assert f"\n{name}" in f"\n{shown}"
    assert "phase2.lora.targets = [q_proj, v_proj]  (list of text)" in shown


def test_a_misspelled_setting_is_suggested() -> None:
    result = run("docs", "phase2.lor")
    assert result.exit_code == 1
    assert result.stderr == "error: phase2.lor: unknown setting; did you mean phase2.lora?\n"
