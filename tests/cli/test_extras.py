"""What an extra of the package installs is needed by its own commands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmoerm.cli import _EXTRAS

ROW = {"prompt": "How are you?", "responses": ["Fine.", "No."], "scores": [1, 0]}
ABSENT = ["accelerate", "datasets", "fastapi", "matplotlib", "openai", "pandas", "pyarrow", "scipy", "uvicorn"]
RUN = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))  # an import of one of them fails, as if it were not installed
from dmoerm.__main__ import main
main()
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command without the extras' packages, in a folder with `rows.jsonl`."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return lambda *command: subprocess.run(
        [sys.executable, "-c", RUN, *command], capture_output=True, text=True, check=False, cwd=tmp_path
    )


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("label", "rows.jsonl", "--overall", "--out", "labels.parquet", "--model", "judge"), "label"),
        pytest.param(("demo",), "train", marks=pytest.mark.slow),
        pytest.param(("serve", "human"), "serve", marks=pytest.mark.slow),
    ],
)
def test_a_command_names_the_extra_that_it_needs(run: Any, command: tuple[str, ...], extra: str) -> None:
    done = run(*command)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert line.endswith(f"which is not installed: pip install '.[{extra}]' in dmoerm's folder")
    assert line.startswith(f"error: {command[0]} needs the package ")
    assert line.split()[5].rstrip(",") in _EXTRAS[extra]


@pytest.mark.slow
def test_scoring_needs_no_extra(run: Any, trained_run: Any, tmp_path: Path) -> None:
    done = run("score", str(trained_run.folder / "model"), "--input", "rows.jsonl", "--output", "scored.jsonl")
    assert done.returncode == 0, done.stderr
    expected = [score.reward for score in trained_run.model.score(ROW["prompt"], ROW["responses"])]
    assert json.loads((tmp_path / "scored.jsonl").read_text())["rewards"] == pytest.approx(expected, abs=1e-4)
