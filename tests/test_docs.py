"""The blocks that README.md and docs/ mark with `<!-- run -->` run in their order, in one folder per page.

The folder has `mine.csv`, `mine.jsonl`, and a trained run at runs/demo. Commands of other programs are skipped.
"""

import csv
import importlib
import re
import shlex
from pathlib import Path

import pytest
from tiny import tiny_groups, write_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- run -->\n```(bash|python)\n(.*?)```", re.S)
LARGE = ("Qwen/", "meta-llama/")
TRAINS = {"train", "compare", "demo", "add", "retrain"}
"""Commands that take the settings with which a run takes seconds."""


def marked() -> list[Path]:
    return [page for page in PAGES if "<!-- run -->" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", marked(), ids=lambda page: page.stem)
def test_marked_blocks_run(page, tiny_backbone, trained_run, smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/demo").symlink_to(trained_run.folder)
    write_groups(tiny_groups(), Path("mine.jsonl"))
    with Path("mine.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("prompt", "chosen", "rejected"), *((f"Question {i}?", "Yes, I do.", "No.") for i in range(40))]
        )
    small = {"backbone.path": tiny_backbone, "backbone.num_layers": 3, "backbone.branch_layer": 2, "cache": "cache"}
    names: dict[str, object] = {}
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["dmoerm"]:
                settings = [f"--set={name}={value}" for name, value in small.items()] if words[1] in TRAINS else []
                result = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb"}).invoke(app, [*words[1:], *settings])
                assert result.exit_code == 0, f"{line}\n{result.output}"


def test_every_page_with_commands_of_training_loads_their_configs():
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line.startswith("dmoerm train ") and any(name in line for name in LARGE)]
    assert lines
    for line in lines:
        name, *options = shlex.split(line, comments=True)[2:]
        assert "/" in load_config(name, [option for option in options if option != "--set"]).backbone.path


def test_the_names_that_the_pages_import_exist():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    imports = [found for text in texts for found in re.findall(r"^\s*from (dmoerm[\w.]*) import ([\w, ]+)", text, re.M)]
    assert len(imports) > 2
    for module, names in imports:
        for name in names.replace(" ", "").split(","):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
