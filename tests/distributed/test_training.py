"""The graph on a cluster: a lost node costs the step that ran there, a killed driver none that is finished."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny import make_tiny_config, train_quietly

from dmoerm.config import Config, dump_config
from dmoerm.distributed import training
from dmoerm.errors import ConfigError, DataError
from dmoerm.model import DMoERM
from dmoerm.training import Run, train

from .conftest import Nodes, wait_until

pytest.importorskip("ray", reason="ray is not installed; run: make install")
pytestmark = pytest.mark.slow

# Long enough to be killed in, with checkpoints to go on from.
_PHASE2 = {"epochs": 150, "evaluations": 15, "learning_rate": 1e-3, "patience": 15, "lora": {"rank": 2, "dropout": 0.2}}
LONG: dict[str, Any] = {"training": {"batch_groups": 2}, "phase2": _PHASE2}


@pytest.fixture(scope="module")
def in_process(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_quietly(make_tiny_config(tiny_backbone, tmp_path_factory.mktemp("local"), **LONG))


def train_on_ray(config: Config) -> Run:
    return train(config, Console(quiet=True), training.on_ray)


def train_during(kill: Callable[[], object], config: Config) -> Run:
    """Train while another thread kills something."""
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        run = train_on_ray(config)
        killed.result()
    return run


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """File → its tensors, of a checkpoint."""
    return {str(file.relative_to(folder)): load_file(file) for file in folder.rglob("*.safetensors")}


def assert_equal(run: Run, expected: Run) -> None:
    """The saved models are equal to 1e-4, in every tensor and in what they say."""
    result, expected_tensors = tensors(run.folder / "model"), tensors(expected.folder / "model")
    assert result.keys() == expected_tensors.keys()
    for file, parts in expected_tensors.items():
        torch.testing.assert_close(result[file], parts, atol=1e-4, rtol=1e-4, msg=lambda text, f=file: f"{f}: {text}")
    prompt, responses = "Hey, my dog is afraid.", ["Poor thing!", "A dog is a mammal."]
    scores = [DMoERM.from_pretrained(item.folder / "model").score(prompt, responses) for item in (run, expected)]
    assert [s.reward for s in scores[0]] == pytest.approx([s.reward for s in scores[1]], abs=1e-4)


def times(folder: Path) -> dict[Path, int]:
    """Finished step → when it was written."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("state.safetensors")}


def test_a_node_that_dies_in_phase_2_costs_its_step_alone(
    nodes: Nodes, in_process: Run, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(**LONG)
    shared = Path(config.output)

    def midway() -> bool:
        """Return whether one phase-2 step runs on the second node and has left a checkpoint."""
        tasks = [task for task in ("chitchat", "objective_qa") if nodes.running(f"phase2/{task}", nodes.second)]
        paths = [shared / "checkpoints" / "phase2" / task / "lora" for task in tasks]
        return len([path for path in paths if any(path.glob("checkpoint-*/process0.pt"))]) == 1

    def kill() -> None:
        wait_until(midway, "no phase 2 on the second node")
        nodes.kill(nodes.second)

    run = train_during(kill, config)
    nodes.second = nodes.add()
    assert_equal(run, in_process)
    assert not list(shared.rglob("process0.pt"))


def test_the_workers_share_the_trunks_activations(
    nodes: Nodes, in_process: Run, tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmoerm.distributed.training._MIN_SHARE", 4)
    run = train_on_ray(tiny_config(**LONG, cache=str(tmp_path / "cache")))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2  # one by each node; nobody had to add to them
    assert_equal(run, in_process)


DRIVER = """
import ray
from rich.console import Console
from dmoerm.config import load_config
from dmoerm.distributed.training import on_ray
from dmoerm.training import train

ray.init(address={address!r}, log_to_driver=False)
train(load_config({config!r}), Console(quiet=True), on_ray)
"""


def test_a_killed_driver_costs_no_finished_step(
    nodes: Nodes, in_process: Run, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config, file = tiny_config(**LONG), tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    code = DRIVER.format(address=nodes.address, config=str(file))
    driver = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_until(lambda: nodes.running("phase2/") or driver.poll(), "no phase 2")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not nodes.running("phase"), "the killed driver's tasks go on")
    before = times(Path(config.output))
    assert before
    run = train_on_ray(config)
    after = times(run.folder)
    assert {file: after[file] for file in before} == before
    assert len(after) > len(before)
    assert_equal(run, in_process)


def test_a_cluster_that_is_not_there_is_named() -> None:
    code = "from dmoerm.distributed.cluster import cluster\nwith cluster('127.0.0.1:1'): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "ClusterError: Ray cluster 127.0.0.1:1: " in done.stderr


# No dropout, which each process draws for its own groups, and nothing chosen by a loss, which rounding changes.
ENDS: dict[str, Any] = {"training": {"metric_for_best_model": "end"}, "phase2": {"lora": {"rank": 2, "dropout": 0.0}}}
GROUP: dict[str, Any] = {"workers_per_step": 2, "cpus": 0.5}


@pytest.mark.parametrize(("step", "kill"), [("phase1", True), ("phase2", False)])
def test_two_workers_train_a_step_as_one(
    nodes: Nodes, tiny_config: Callable[..., Config], tmp_path: Path, step: str, kill: bool
) -> None:
    """One step of a finished run is trained again; a lost worker costs this step alone."""
    config = tiny_config(**ENDS, ray=GROUP)
    first = train_quietly(config)
    one = replace(first, folder=Path(shutil.copytree(first.folder, tmp_path / "one")))
    shutil.rmtree(first.folder / "steps" / step / "chitchat")
    before = times(first.folder)

    def kill_one() -> None:
        os.kill(wait_until(lambda: nodes.running("RayTrainWorker"), "no worker", 300)[0], signal.SIGKILL)

    two = train_during(kill_one, config) if kill else train_on_ray(config)
    after = times(two.folder)
    assert len(after) == len(before) + 1
    assert {file: after[file] for file in before} == before
    assert_equal(two, one)


@pytest.mark.parametrize("ray", [{}, GROUP])
def test_what_a_worker_raises_on_purpose_is_raised_here(
    nodes: Nodes, tiny_config: Callable[..., Config], ray: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="more than the 16 allowed"):
        train_on_ray(tiny_config(encoding={"max_length": 16}, ray=ray))


def test_a_group_larger_than_a_pass_is_refused(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="for 9 processes"):
        train_on_ray(tiny_config(ray={"workers_per_step": 9}))


def test_a_worker_without_memory_is_not_a_lost_worker() -> None:
    """Torch's error is a RuntimeError, as those of the others are when a worker is lost; trying again does not help."""
    full = torch.OutOfMemoryError("out of memory")
    failed = SimpleNamespace(worker_failures={0: RuntimeError("connection reset"), 1: full})
    assert training._cause(failed, "phase0") is full
    lost = SimpleNamespace(worker_failures={0: RuntimeError("connection reset")})
    assert isinstance(training._cause(lost, "phase0"), training._WorkerLost)
