"""The README's server command and its demo; test_docs.py runs its marked blocks."""

import json
import re
import shlex
from pathlib import Path

import httpx2
import pytest
from running import command, free_port
from sample_results import read_results
from typer.testing import CliRunner

from dmoerm import DMoERM, serving
from dmoerm.cli import app

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_server_command_runs(smollm2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"`dmoerm serve ([^`]+)`", README.read_text(encoding="utf-8"))
    model, *options = shlex.split(line)
    port = free_port()
    with command(model, port, *options, log=tmp_path / "log"):
        assert "<title>dmoerm" in httpx2.get(f"http://127.0.0.1:{port}/").text


def test_the_score_command_prints_what_the_page_says(smollm2):
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")
    line, printed = re.search(r"(dmoerm score human .*)\n```\n\n```\n((?:.*\n)*?)```", text).groups()
    result = CliRunner(env={"NO_COLOR": "1"}).invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    found, expected = (figures(each) for each in (result.stdout.partition("\n┏")[0], printed))
    assert found == pytest.approx(expected, abs=0.15)  # bfloat16 differs between processors


def figures(text: str) -> dict[str, float]:
    """The numbers of the two lines by name."""
    return {name: float(value) for name, value in re.findall(r"(\w+) ([-+]?[\d.]+\d)", text)}


@pytest.mark.slow
def test_the_demo_keeps_its_promises(smollm2, tmp_path):
    """Run what `make demo` runs after the installation, with SmolLM2."""
    size = {"COLUMNS": "170", "LINES": "50"}  # without LINES, rich takes 80 columns where a variable forces a terminal
    result = CliRunner(env=size | {"NO_COLOR": "1"}).invoke(app, ["demo", "--output", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    found = read_results(tmp_path / "demo" / "results.json")
    assert found.router.accuracy >= 0.95
    assert found.paired["dmoerm - general"]["mean"].low > 0
    assert found.peak_memory < 4 * 2**30
    model = DMoERM.from_pretrained(tmp_path / "demo")
    examples = json.loads((Path(serving.__file__).parent / "page" / "examples.json").read_text(encoding="utf-8"))
    for example in (e for e in examples if e["task"] in model.config.tasks):  # on the page: the first is the best
        best, *others = model.score(example["prompt"], example["responses"])
        assert best.task == example["task"] in model.config.tasks
        for other in others:
            assert best.reward > other.reward
            assert all(best.capabilities[name] > score for name, score in other.capabilities.items())
    assert all(
        text in result.stdout for text in ("Accuracy on held-out prompts", "dmoerm - general", "A held-out prompt")
    )
    assert re.search(r"response \d is better than response \d by", result.stdout)


def test_hints_do_not_install_a_package_that_is_not_on_pypi() -> None:
    assert "not on PyPI" in README.read_text(encoding="utf-8"), "otherwise hints name the package"
    files = [file for folder in ("src", "examples") for file in (README.parent / folder).rglob("*.py")]
    assert files
    assert not [str(file) for file in files if re.search(r"pip install '?dmoerm", file.read_text(encoding="utf-8"))]
