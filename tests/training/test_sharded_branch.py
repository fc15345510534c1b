"""A branch in shards trains as a whole one. One process holds all shards here; test_sharding.py has two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from dmoerm.training import phases, processes
from dmoerm.training.sharding import full_state, full_tensor, is_sharded, whole_state
from dmoerm.training.steps import Training

from .launching import END, LORA


@contextlib.contextmanager
def one_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process, started by accelerate with fsdp2.yaml."""
    processes.process_state()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    processes.sharded.cache_clear()
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
        processes.sharded.cache_clear()


def trained(training: Training) -> dict[str, Tensor]:
    """The state of the general model after phase 0, which the model has too."""
    run, general = training.run, training.run.model.general
    parts = training.train, training.validation
    with run.progress.step("phase0"):
        state, _ = phases.train_base(run, general, *parts, run.config.phase0, run.folder / "checkpoints" / "phase0")
    phases.apply_base(general, state)
    return state


@pytest.mark.parametrize(
    ("base", "again"),
    [
        ("full", False),
        *(pytest.param(*form, marks=pytest.mark.slow) for form in (("full", True), ("lora", False), ("lora", True))),
    ],
)
def test_a_sharded_branch_trains_as_a_whole_one(
    begun: Callable[..., Training], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, again: bool
) -> None:
    """Also with `gradient_checkpointing`, which the whole one does without."""
    step = {**END, "steps": 3, "evaluations": 1, "l2": 0.1, "batch_groups": 4}
    settings: dict[str, Any] = {"base": base, "phase0": step, **({"base_lora": LORA} if base == "lora" else {})}
    one = begun(**settings, output=str(tmp_path / "one"))
    expected = trained(one)
    with one_shard(tmp_path, monkeypatch):
        other = begun(**settings, gradient_checkpointing=again, output=str(tmp_path / "other"))
        general = other.run.model.general
        assert is_sharded(general)
        state = trained(other)
        assert any(isinstance(tensor, DTensor) for tensor in state.values())
        found = whole_state(state)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)
        for name, weight in general.branch.named_parameters():
            assert torch.equal(full_tensor(weight), found[f"branch.{name}"]), name
        with full_state(other.run.model):
            whole = other.run.model.state_dict()
    before = one.run.model.state_dict()
    assert all(torch.allclose(whole[name], tensor, atol=1e-5) for name, tensor in before.items())
