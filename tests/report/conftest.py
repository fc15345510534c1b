"""A real comparison by `dmoerm compare` and `dmoerm bon` on a tiny random backbone, and pages without plots."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tiny import TINY_TASKS, make_tiny_config, write_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import dump_config
from evidence import testbed


@pytest.fixture(scope="session")
def compared(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `compare` and `bon`; it takes half a minute, so only slow tests use it."""
    folder = tmp_path_factory.mktemp("compared")
    frozen = {
        "base": "frozen",
        "phase2": {"lora": {"rank": 0}},
        "phase1": {"phase1_fraction": 0},
        "phase3": {"inputs": "scores"},
    }
    (folder / "mine.yaml").write_text(dump_config(make_tiny_config(tiny_backbone, folder, **frozen)))
    graded = [group for group in testbed.generate(4, 8) if group.task in TINY_TASKS]
    samples = write_groups(graded, folder / "samples.jsonl")
    shared = [str(folder / "mine.yaml"), "--seed", "0", "--members", "2", "--output", str(folder / "out")]
    for command in (["compare", *shared], ["bon", *shared, "--from", samples, "--samples", "8"]):
        result = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb"}).invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "report.html" in result.stdout
    return folder / "out"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace each plot by an empty SVG, since drawing takes most of a page's time."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg"/>'
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(empty))
