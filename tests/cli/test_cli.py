import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import dmoerm
from dmoerm.cli import app
from dmoerm.cli import run as runs
from dmoerm.config import load_config
from dmoerm.errors import CheckpointError, ConfigError

Write = Callable[..., Path]
WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
GROUP = {"task": "chat", "prompt": "Hi", "responses": ["a", "b"], "scores": [1, 0], "capabilities": {"logic": [1, 0]}}


def run(*arguments: object):
    return CliRunner(env=WIDE).invoke(app, [str(argument) for argument in arguments])


def fails(*arguments: object) -> str:
    """The one line that says why the command failed; nothing else is on the screen."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), "on purpose, not by a fault"
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_help_and_completion_import_no_command() -> None:
    code = """
import os, sys
from typer.testing import CliRunner

from dmoerm.cli import COMMANDS, app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0 and all(name in result.output for name in COMMANDS), result.output
words = {"_DMOERM_COMPLETE": "complete_bash", "COMP_WORDS": "dmoerm tr", "COMP_CWORD": "1"}
result = CliRunner(env=words).invoke(app, prog_name="dmoerm")
assert result.output.split() == ["train"], result.output
print([name for name in ("torch", "transformers", "numpy", "dmoerm.cli.run") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_of_a_command_imports_nothing_that_takes_long() -> None:
    code = """
import sys
from typer.testing import CliRunner

from dmoerm.cli import COMMANDS, app
for name in COMMANDS:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output, result.output
slow = ("torch", "transformers", "datasets", "scipy.stats", "scipy.cluster", "fastapi", "matplotlib", "ray")
print([name for name in slow if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_real_command_says_one_line_and_exits_with_1(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['dmoerm', 'train', 'none.yaml']; from dmoerm.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: none.yaml: no such file")
    assert done.stderr.count("\n") == 1


def test_version_short_help_and_names_that_are_nearly_right() -> None:
    assert run("--version").output == f"dmoerm {dmoerm.__version__}\n"
    for command in ((), ("train",), ("label", "report")):
        assert run(*command, "-h").output == run(*command, "--help").output
    assert "did you mean frozen? give a YAML file" in fails("train", "frozn")
    assert "did you mean" not in fails("train", "none.yaml")
    assert dir(dmoerm) == sorted([*dmoerm.__all__, "__version__"])


def test_an_interrupt_is_130_and_a_fault_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise error

        return fail

    monkeypatch.setattr(runs, "_train", raising(KeyboardInterrupt()))
    interrupted = run("train", "demo")
    assert interrupted.exit_code == 130
    assert "the same command resumes" in interrupted.output
    monkeypatch.setattr("dmoerm.cli.score._score_here", raising(KeyboardInterrupt()))
    once = run("score", "model", "--input", "rows.jsonl")
    assert (once.exit_code, "resumes" in once.output) == (130, False)
    monkeypatch.setattr(runs, "_train", raising(OSError(errno.ENOSPC, "No space left on device", "model")))
    assert "No space left on device" in fails("train", "demo")
    monkeypatch.setattr(runs, "_train", raising(CheckpointError("model: is damaged [b]")))
    assert fails("train", "demo") == "error: model: is damaged [b]"
    monkeypatch.setattr(runs, "_train", raising(BrokenPipeError()))
    assert run("train", "demo").exit_code == 141
    cuda = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
    monkeypatch.setattr(runs, "_train", raising(torch.OutOfMemoryError(cuda)))
    message = fails("train", "demo")
    assert message.startswith("error: train: the device is out of memory (tried to allocate 2.00 GiB); set base to")
    monkeypatch.setattr("dmoerm.cli.score._score_here", raising(torch.OutOfMemoryError("out of memory")))
    message = fails("score", "model", "--input", "rows.jsonl")
    assert message.startswith("error: score: the device is out of memory; set a lower --batch-tokens")
    fault = ZeroDivisionError("a fault")
    monkeypatch.setattr(runs, "_train", raising(fault))
    assert run("train", "demo").exception is fault


@pytest.mark.parametrize("module", ["dmoerm.cli", "dmoerm.errors", "typer.core", "dmoerm.cli.run"])
def test_an_interrupt_while_the_command_starts_is_no_traceback(module: str) -> None:
    code = f"""
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.argv = ["dmoerm", "train", "demo", "--print-config"]
from dmoerm.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_printed_config_loads_again(tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(run("train", "human", "--set", "seed=7", "--print-config").stdout)
    assert load_config(tmp_path / "again.yaml") == load_config("human", ["seed=7"])


def test_a_file_goes_before_a_shipped_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert load_config("demo").output == "runs/demo"
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("output: mine")
    assert load_config("demo").output == "mine"
    with pytest.raises(ConfigError, match=r"shipped configs .*demo"):
        load_config("none")


def test_configs_and_data_that_cannot_be_used(tmp_path: Path, write_rows: Write) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("sed: 1")
    assert "sed" in fails("train", config)
    assert "write it as a.b=value" in fails("train", "demo", "--set", "seed")
    settings = [f"output={tmp_path / 'run'}", f"data.files=[{tmp_path / 'broken.jsonl'}]", "data.test_files=[]"]
    command = ["train", "demo", *(word for setting in settings for word in ("--set", setting))]
    assert "the file does not exist" in fails(*command)
    (tmp_path / "broken.jsonl").write_text(json.dumps(GROUP) + "\n{")
    assert "broken.jsonl:2: is not valid JSON" in fails(*command)
    write_rows([GROUP], "broken.jsonl")
    assert "no such task" in fails(*command)
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_model(tmp_path: Path, write_rows: Write) -> None:
    rows = write_rows([GROUP])
    for command in (["eval", tmp_path], ["score", tmp_path, "--input", rows]):
        assert "is not a dmoerm model" in fails(*command)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type is 'llama'" in fails("eval", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in fails("score", tmp_path, "--input", rows)
    assert "there is no such folder" in fails("eval", tmp_path / "none")


def test_a_wrong_output_name_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    assert "use .jsonl or .parquet" in fails("score", tmp_path, "--input", "x.jsonl", "--output", tmp_path / "y.csv")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails("score", tmp_path, "--input", "x", "--output", tmp_path / "file" / "y.jsonl")
