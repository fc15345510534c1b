"""Runs by two processes, as `accelerate launch` starts them, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dmoerm import training
from dmoerm.config import Config, dump_config

CONFIGS = Path(training.__file__).parents[1] / "configs" / "accelerate"

# Dropout in a LoRA is drawn by each process for its own groups, so that runs with it agree on average alone. What is
# kept is the end, which is all of the training; in the last form, for some steps, the best.
LORA = {"rank": 2, "dropout": 0.0}
END = {"metric_for_best_model": "end"}
ENDS = {"training": END, "phase2": {"lora": LORA}}


# Passes and parts of batches so small that both processes have some, though not equally many.
SMALL = """
from dmoerm.cli import main
from dmoerm.model import DMoERM
from dmoerm.model.packing import batches, greedy
from dmoerm.training import cache, embedding, losses, run

losses.greedy = lambda examples, size, budget: greedy(examples, size, 256)
cache.batches = lambda texts, budget: batches(texts, 256)
embedding.batches = cache.batches
DMoERM.pass_tokens = lambda self, tokens=None: 256
"""
COMMAND = SMALL + "main()\n"


def written(config: Config, folder: Path) -> tuple[Path, Config]:
    """The settings with an output and a cache of their own, as a file."""
    other = config.model_copy(update={"output": str(folder / "run"), "cache": str(folder / "cache")})
    folder.mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(dump_config(other))
    return file, other


def launch(*command: str, how: str = "ddp_cpu") -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU by a shipped config."""
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{how}.yaml")]
    start += ["--num_processes", "2", "--main_process_port", "0"]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *command], env=environment, check=False, capture_output=True, text=True, timeout=300)


def checkpoints(config: Config) -> dict[str, torch.Tensor]:
    """Every tensor that the run has left, of its steps and of its model."""
    root = Path(config.output)
    files = [*root.glob("steps/**/*.safetensors"), *root.glob("model/**/*.safetensors")]
    return {f"{file.relative_to(root)}: {name}": t for file in files for name, t in load_file(file).items()}


def assert_close(one: Config, other: Config, tolerance: float = 1e-4) -> None:
    found, expected = checkpoints(one), checkpoints(other)
    assert found.keys() == expected.keys()
    assert any(name.startswith("model/") for name in found)
    apart = {name: difference(name, found[name].float(), t.float()) for name, t in expected.items() if t.numel()}
    worst = max(apart, key=lambda name: apart[name])
    assert apart[worst] <= tolerance, f"{worst}: {apart[worst]:.2g}"


def difference(name: str, found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two tensors; of two bases, that of the covariances (D, D) that they stand for, in units
    of the largest entry where that is above 1.

    A basis is unique but for the signs of its directions and for directions that are rounding, of which one process
    may keep another number than two. The directions are columns, but those of prompt statistics are rows.
    """
    if name.endswith("basis"):
        rows = "statistics" in name
        found, expected = (basis.T @ basis if rows else basis @ basis.T for basis in (found, expected))
        return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    return float((found - expected).abs().max())


def measured(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    return {name: results[name] for name in ("accuracy", "paired", "capabilities", "router", "calibration")}


def trained(config: Config, folder: Path, *options: str, how: str = "ddp_cpu", command: str = COMMAND) -> Config:
    """The settings of the run, which two processes have trained."""
    file, two = written(config, folder)
    script = folder / "command.py"
    script.write_text(command)
    done = launch(str(script), "train", str(file), *options, how=how)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model: ") == 1
    return two


def approximately(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(approximately(found[k], v) for k, v in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(approximately, found, expected))
    return found == (pytest.approx(expected, abs=1e-3) if isinstance(expected, float) else expected)


KILLED = """
import os, signal, sys
from dmoerm.config import load_config
from dmoerm.training import train
from dmoerm.training.loop import Loop
from dmoerm.training.processes import rank

take_step = Loop._step

def killed(self, batches):
    if str(self.folder).endswith("checkpoints/{step}") and self.done == {at} and rank() in {ranks}:
        self.module.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    return take_step(self, batches)

Loop._step = killed
train(load_config(sys.argv[1]))
"""


def killed(
    config: Config, folder: Path, step: str, at: int, how: str = "ddp_cpu", ranks: tuple[int, ...] = (1,)
) -> Config:
    """The settings of a run of which these processes were killed in that step, before a backward pass."""
    file, broken = written(config, folder)
    script = folder / "killed.py"
    script.write_text(KILLED.format(step=step, at=at, ranks=ranks))
    ended = launch(str(script), str(file), how=how)
    assert ended.returncode != 0
    assert "Signal 9" in ended.stderr, ended.stderr[-3000:]
    assert not (Path(broken.output) / "model").exists()
    assert list((Path(broken.output) / "checkpoints" / step).glob("checkpoint-*"))
    return broken


LONG = {"epochs": 4, "evaluations": 4, "learning_rate": 1e-2}
