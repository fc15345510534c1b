"""`dmoerm rl`: from a config to trajectories, a table and rl.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_tiny_config
from tiny_policy import TINY_POLICY, tiny_settings
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import dump_config
from dmoerm.rl import read_trajectory

WIDE = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def run(*arguments: object, fails: bool = False):
    result = CliRunner(env=WIDE).invoke(app, ["rl", *(str(argument) for argument in arguments)])
    assert (result.exit_code != 0) == fails, result.output
    return result


@pytest.fixture(scope="module")
def config(tiny_backbone, tmp_path_factory) -> Path:
    """A run on all tasks of the testbed."""
    folder = tmp_path_factory.mktemp("rl")
    frozen = {
        "base": "frozen",
        "phase2": {"lora": {"rank": 0}},
        "phase1": {"phase1_fraction": 0},
        "phase3": {"inputs": "scores"},
    }
    data = {"files": [], "testbed_prompts": 6, "testbed_responses": 3, "max_capabilities": 1}
    settings = make_tiny_config(tiny_backbone, folder, **frozen, data=data, taxonomy="paper-en")
    (folder / "tiny.yaml").write_text(dump_config(settings), encoding="utf-8")
    return folder / "tiny.yaml"


def overrides() -> list[str]:
    policy = TINY_POLICY.model_copy(update={"prompts_per_task": 8, "epochs": 1.0})
    changed = {f"policy.{k}": v for k, v in policy.model_dump(exclude_unset=True).items()}
    changed |= {f"rl.{k}": v for k, v in tiny_settings(measure_every=2).model_dump(exclude_unset=True).items()}
    return [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]


def test_from_a_config_to_trajectories(config: Path) -> None:
    options = (config, "--beta", 0.1, "--seed", 0, "--method", "general", "--method", "dmoerm")
    options = (*options, "--steps", 2, "--prompts", 10, "--members", 2, *overrides())
    output = run(*options).output
    folder = config.parent / "run-compare"
    found = json.loads((folder / "rl.json").read_text())
    assert (found["schema"], found["kind"]) == (2, "rl")
    runs = [(one["condition"], one["method"], one["beta"], one["seed"]) for one in found["runs"]]
    assert runs == [("noisy", method, 0.1, 0) for method in ("general", "dmoerm")]
    assert all(one["points"][0]["kl"] == pytest.approx(0, abs=1e-6) for one in found["runs"])
    assert set(found["paired"]["noisy"]) == {"dmoerm - general (0.1)"}
    assert "fall from the peak" in output
    assert not list(folder.glob("noisy/seed0/dmoerm/steps/baselines/*")), "only the requested methods are trained"
    files = sorted(folder.glob("noisy/seed0/rl/*/trajectory.json"))
    assert len(files) == 2
    written = [file.stat().st_mtime_ns for file in files]
    assert run(*options).stdout in output  # the same table
    assert [file.stat().st_mtime_ns for file in files] == written  # what is done is not done again
    assert read_trajectory(files[0]).points[-1].step == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "ensemble"), "use some of general"),
        (("--set", "rl.generations=1"), "generations"),
        (("--set", "policy.depth=1"), "depth"),
        (("--set", "other.depth=1"), "other"),
        (("--beta", "-0.1"), "--beta"),
        (("--beta", "nan"), "--beta"),
    ],
)
def test_invalid_options_are_refused(config: Path, options, message) -> None:
    asked = ("--seed", 0, "--members", 2, "--prompts", 10, *overrides(), *options)
    assert message in run(config, *asked, fails=True).output


def test_options_override_settings(config: Path) -> None:
    from dmoerm.cli.rl import _settings

    given = ["rl.algorithm=grpo", "rl.steps=7", "policy.layers=3", "seed=4"]
    found = _settings(str(config), given, None, {"algorithm": None, "steps": 9})
    assert found.rl.model_dump(exclude_unset=True) == {"algorithm": "grpo", "steps": 9}
    assert _settings(str(config), given, None, {"algorithm": "rloo"}).rl.algorithm == "rloo"
    assert (found.policy.layers, found.config.seed) == (3, 4)


def test_a_missing_trl_is_reported(config: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    assert "pip install '.[rl]'" in run(config, fails=True).output
