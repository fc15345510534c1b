"""The README's commands and snippets run and print the output shown."""

import importlib
import json
import re
import shlex
from pathlib import Path

import httpx2
import pytest
from running import command, free_port
from sample_results import read_results
from tiny import tiny_groups, write_groups
from typer.testing import CliRunner

from dmoerm import DMoERM, serving
from dmoerm.cli import app
from dmoerm.config import load_config

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    fenced = README.read_text(encoding="utf-8").split("```")[1::2]
    return [text for head, _, text in (block.partition("\n") for block in fenced) if head == language]


def invoke(command: str):
    size = {"COLUMNS": "170", "LINES": "50"}  # without LINES, rich takes 80 columns where a variable forces a terminal
    return CliRunner(env=size | {"NO_COLOR": "1", "TERM": "dumb"}).invoke(app, shlex.split(command)[1:])


def test_the_python_snippet_runs(trained_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "model").symlink_to(trained_run.folder / "model")
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("python")
    exec(compile(snippet, "README.md", "exec"), {})
    assert re.match(r"-?\d+\.\d+ \w+ \{", capsys.readouterr().out)


DOCS = sorted(README.parent.glob("docs/*.md"))


def test_the_names_that_the_docs_import_exist():
    statements = [
        match
        for page in (README, *DOCS)
        for match in re.findall(r"^\s*from (dmoerm[\w.]*) import ([\w, ]+)", page.read_text(encoding="utf-8"), re.M)
    ]
    assert len(statements) > 2
    missing = [
        f"{module}.{name}"
        for module, names in statements
        for name in names.replace(" ", "").split(",")
        if not hasattr(importlib.import_module(module), name)
    ]
    assert not missing


def small(backbone: str) -> str:
    """Return settings with which a run takes seconds."""
    settings = {"backbone.path": backbone, "backbone.num_layers": 3, "backbone.branch_layer": 2, "cache": "cache"}
    return "".join(f" --set {name}={value}" for name, value in settings.items())


def test_the_commands_for_own_data_run(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_groups(tiny_groups(), tmp_path / "mine.jsonl")
    write_groups(tiny_groups(), tmp_path / "to_score.jsonl")
    commands = [line for line in blocks("bash")[1].splitlines() if line.startswith("dmoerm ")]
    assert len(commands) == 4
    for line in commands:
        result = invoke(line + small(tiny_backbone) * (" train " in line))
        assert result.exit_code == 0, result.output
    assert (tmp_path / "scored.jsonl").read_text().count("\n") == len(tiny_groups())


def test_the_commands_for_other_backbones_are_valid_configs():
    lines = [line for line in blocks("bash")[3].splitlines() if line.startswith("dmoerm train ")]
    assert len(lines) == 2
    for line in lines:
        name, *options = shlex.split(line)[2:]
        overrides = [option for option in options if option != "--set"]
        assert "/" in load_config(name, overrides).backbone.path


def test_the_server_command_runs(trained_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(trained_run.folder)
    monkeypatch.chdir(tmp_path)
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("dmoerm serve ")]
    model, *options = shlex.split(line.partition("#")[0])[2:]
    port = free_port()
    with command(model, port, *options, log=tmp_path / "log"):
        assert "<title>dmoerm" in httpx2.get(f"http://127.0.0.1:{port}/").text


@pytest.mark.slow
def test_the_demo_keeps_its_promises(smollm2, tmp_path):
    """Run what `make demo` runs after the installation, with SmolLM2."""
    result = invoke(f"dmoerm demo --output {tmp_path / 'demo'}")
    assert result.exit_code == 0, result.output
    found = read_results(tmp_path / "demo" / "results.json")
    assert found.router.accuracy >= 0.95
    assert found.paired["dmoerm - general"]["mean"].low > 0
    assert found.peak_memory < 4 * 2**30
    model = DMoERM.from_pretrained(tmp_path / "demo")
    examples = json.loads((Path(serving.__file__).parent / "page" / "examples.json").read_text(encoding="utf-8"))
    for example in examples:  # on the server's page: the first response is the best
        best, *others = model.score(example["prompt"], example["responses"])
        assert best.task == example["task"] in model.config.tasks
        for other in others:
            assert best.reward > other.reward
            assert all(best.capabilities[name] > score for name, score in other.capabilities.items())
    shown = next(block for block in blocks("") if "Accuracy" in block)
    printed = {shape(line) for line in result.stdout.splitlines()}
    assert [line for line in shown.splitlines() if shape(line) not in printed] == [], result.stdout


def shape(line: str) -> str:
    """Return a printed line without its figures, texts and widths."""
    return re.sub(r"[-+]?\d+(\.\d+)?|[─━═\s]+", "", line) if "│" not in line else line.split("│")[1].strip()


def test_hints_do_not_install_a_package_that_is_not_on_pypi() -> None:
    assert "not on PyPI" in README.read_text(encoding="utf-8"), "otherwise hints name the package"
    files = [file for folder in ("src", "examples") for file in (README.parent / folder).rglob("*.py")]
    assert files
    assert not [str(file) for file in files if re.search(r"pip install '?dmoerm", file.read_text(encoding="utf-8"))]
