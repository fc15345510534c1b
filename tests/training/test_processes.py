"""Two processes train and measure as one does, and go on where one of them was killed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config import load_config_from_file
from tiny import make_tiny_config

from dmoerm.cli.run import train_and_measure
from dmoerm.config import Config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation import evaluate
from dmoerm.training import Run, processes

from .launching import (
    COMMAND,
    CONFIGS,
    END,
    ENDS,
    LONG,
    LORA,
    approximately,
    assert_close,
    killed,
    launch,
    measured,
    trained,
    written,
)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_shipped_configs(file: Path) -> None:
    found = load_config_from_file(str(file))
    assert found.num_processes > 1


FORMS: dict[str, dict[str, Any]] = {
    "all weights": ENDS,
    "frozen": {"base": "frozen", "training": END, "phase2": {"fit": "exact"}},
    "lora": {"base": "lora", "base_lora": LORA, **ENDS},
    "head first, uneven": {
        "training": {"batch_groups": 3, **END},
        "router": {"kind": "own", "epochs": 2, "learning_rate": 1e-3},
        "phase0": {"head_first": True},
        "phase2": {"lora": LORA},
        "warm_start": True,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_two_processes_train_and_measure_as_one(tiny_config: Callable[..., Config], tmp_path: Path, form: str) -> None:
    config = tiny_config(**FORMS[form])
    two, one = trained(config, tmp_path / "two"), written(config, tmp_path / "one")[1]
    train_and_measure(one, "train")
    assert_close(two, one)
    assert approximately(measured(Path(two.output)), measured(Path(one.output)))


@pytest.mark.slow
def test_two_processes_evaluate_as_one(trained_run: Run, tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    done = launch(str(script), "eval", str(trained_run.folder), "--report", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Accuracy on held-out prompts") == 1
    test = load_splits(trained_run.config).test
    (tmp_path / "one").mkdir()
    results = evaluate(trained_run.model, test, trained_run.config)
    (tmp_path / "one" / "results.json").write_text(results.to_json())
    assert approximately(measured(tmp_path / "two"), measured(tmp_path / "one"))


RESUMABLE = {
    "training": {"batch_groups": 2},
    "phase0": LONG,
    "phase2": {**LONG, "lora": {"rank": 2, "dropout": 0.2}},
    "phase3": LONG,
}


def finished(config: Config, folder: Path) -> Config:
    file, own = written(config, folder)
    done = launch("-m", "dmoerm.cli", "train", str(file), "--no-eval")
    assert done.returncode == 0, done.stderr[-3000:]
    return own


@pytest.fixture(scope="module")
def unbroken(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("unbroken")
    return finished(make_tiny_config(tiny_backbone, folder, **RESUMABLE), folder)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "at"), [("phase0/branch", 14), ("phase2/chitchat/lora", 7), ("phase3/chitchat", 3)])
def test_a_run_of_which_one_process_was_killed_goes_on_to_the_same_end(
    unbroken: Config, tiny_config: Callable[..., Config], tmp_path: Path, step: str, at: int
) -> None:
    broken = killed(tiny_config(**RESUMABLE), tmp_path, step, at)
    assert_close(finished(broken, tmp_path), unbroken, tolerance=1e-6)


@pytest.mark.parametrize("sizes", [[3, 1, 2, 4, 1], [2], [1, 5]])
def test_outputs_of_passes_are_gathered_in_order(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads take the places of two processes; the second has fewer passes, and with sharded weights a dummy."""
    seat, slots, barrier = threading.local(), [None, None], threading.Barrier(2, timeout=60)

    def exchange(value: Any) -> list[Any]:
        slots[seat.rank] = value
        barrier.wait()
        values = list(slots)
        barrier.wait()
        return values

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: seat.rank)
    monkeypatch.setattr(processes, "gather_object", lambda values: exchange(values[0]))
    outputs = [torch.full((size, 2), float(i)) for i, size in enumerate(sizes)]

    def gathered(rank: int, dummies: list[torch.Tensor]) -> list[torch.Tensor]:
        seat.rank = rank
        return processes.gather_passes([*outputs[rank::2], *dummies], len(sizes))

    for dummies in ([], outputs[:1]):
        with ThreadPoolExecutor(2) as pool:
            for found in [pool.submit(gathered, 0, []), pool.submit(gathered, 1, dummies)]:
                assert all(map(torch.equal, found.result(), outputs))
                assert len(found.result()) == len(outputs)
