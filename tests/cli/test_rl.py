"""`dmoerm rl`: from a trained model to a table and trajectories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_policy import TINY_POLICY, tiny_settings
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.cli.rl import open_methods
from dmoerm.evaluation.scoring import score_groups
from dmoerm.rl import read_trajectory
from dmoerm.schema import Group

WIDE = {"COLUMNS": "200", "TERM": "dumb"}


def run(*arguments: object, fails: bool = False):
    result = CliRunner(env=WIDE).invoke(app, ["rl", *(str(argument) for argument in arguments)])
    assert (result.exit_code != 0) == fails, result.output
    return result


def overrides() -> list[str]:
    policy = TINY_POLICY.model_copy(update={"prompts_per_task": 8, "epochs": 1.0})
    changed = {f"policy.{k}": v for k, v in policy.model_dump(exclude_unset=True).items()}
    changed |= {f"rl.{k}": v for k, v in tiny_settings(measure_every=2).model_dump(exclude_unset=True).items()}
    return [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]


def test_from_a_model_to_trajectories(trained_run, tmp_path):
    options = (
        trained_run.folder,
        "--beta",
        0,
        "--beta",
        0.1,
        "--steps",
        2,
        "--prompts",
        8,
        "--output",
        tmp_path / "rl",
    )
    options = (*options, *overrides(), "--json", tmp_path / "rl.json")
    output = run(*options).output
    rows = json.loads((tmp_path / "rl.json").read_text())
    assert rows["schema"] == 1
    found = [(one["method"], one["settings"]["beta"], one["settings"]["seed"]) for one in rows["trajectories"]]
    assert found == [("dmoerm", 0.0, 0), ("dmoerm", 0.1, 0), ("general", 0.0, 0), ("general", 0.1, 0)]
    assert "fall from the peak" in output
    files = sorted((tmp_path / "rl").glob("*/*/trajectory.json"))
    assert len(files) == 4
    written = [file.stat().st_mtime_ns for file in files]
    assert run(*options).stdout in output  # the same table
    assert [file.stat().st_mtime_ns for file in files] == written  # what is done is not done again
    assert read_trajectory(files[0]).points[-1].step == 2


def test_the_methods_are_those_of_the_evaluation(trained_run):
    from tiny import tiny_groups

    groups: list[Group] = tiny_groups(4)
    methods = open_methods(str(trained_run.folder))
    for name, reward in methods.items():
        expected = [one.rewards[name] for one in score_groups(trained_run.model, groups)]
        for ours, theirs in zip(reward(groups), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "ensemble"), "use one of dmoerm, general"),
        (("--set", "rl.generations=1"), "rl.generations"),
        (("--set", "policy.depth=1"), "policy.depth"),
        (("--set", "other.depth=1"), "use policy.… or rl.…"),
    ],
)
def test_what_cannot_be_is_said(trained_run, tmp_path: Path, options, message):
    assert message in run(trained_run.folder, "--output", tmp_path, *options, fails=True).output


def test_options_go_over_settings():
    from dmoerm.cli.rl import _settings

    given = ["rl.algorithm=grpo", "rl.steps=7", "policy.layers=3"]
    assert _settings(given, {"algorithm": None, "steps": 9})[1].model_dump(exclude_unset=True) == {
        "algorithm": "grpo",
        "steps": 9,
    }
    assert _settings(given, {"algorithm": "rloo"})[1].algorithm == "rloo"
    assert _settings(given, {})[0].layers == 3


def test_without_trl_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    assert "pip install 'dmoerm[rl]'" in run(tmp_path, fails=True).output
