"""With weights in pieces, two processes make what one makes of whole ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import train_quietly
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from dmoerm.cli.run import train_and_measure
from dmoerm.config import Config
from dmoerm.errors import BackboneError, ConfigError
from dmoerm.training import phases, processes
from dmoerm.training.processes import full_state, full_tensor, is_sharded, whole_state
from dmoerm.training.steps import Training

from . import launching
from .launching import (
    END,
    ENDS,
    LONG,
    LORA,
    SMALL,
    approximately,
    assert_close,
    killed,
    measured,
    trained,
    written,
)


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ({}, {"base": "full", "router": {"kind": "own"}}, r"no language model of a router; .*kind to trunk"),
        ({"FSDP_VERSION": "1"}, {"base": "frozen"}, "fsdp_version is 1; set it to 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {"base": "frozen"}, "fsdp_offload_params is true; set it to false"),
    ],
)
def test_pieces_that_cannot_be_are_refused(
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(processes, "sharded", lambda: True)
    for name, value in {"FSDP_VERSION": "2", **given}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train_quietly(tiny_config(**changes))


PIECES = {"base": "frozen", "training": {**END, "batch_groups": 5}, "phase2": {"lora": LORA}}
HELD = """
from pathlib import Path
from dmoerm.training.processes import rank

move_to_device = run.move_to_device

def counted(model):
    model = move_to_device(model)
    count = sum(weight.to_local().numel() for weight in model.trunk.parameters())
    (Path(__file__).parent / f"held{rank()}").write_text(str(count))
    return model

run.move_to_device = counted
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("reshard", ["true", "false"])
def test_two_processes_train_and_measure_as_one(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reshard: str
) -> None:
    """Also with layers that stay gathered after a call."""
    text = (launching.CONFIGS / "fsdp2.yaml").read_text()
    assert "reshard_after_forward: true" in text
    (tmp_path / "fsdp2.yaml").write_text(text.replace("forward: true", f"forward: {reshard}"))
    monkeypatch.setattr(launching, "CONFIGS", tmp_path)
    config = tiny_config(**PIECES)
    two = trained(config, tmp_path / "two", how="fsdp2", command=SMALL + HELD)
    one = written(config, tmp_path / "one")[1]
    model, _ = train_and_measure(one, "train")
    assert_close(two, one)
    assert approximately(measured(Path(two.output)), measured(Path(one.output)))
    trunk = sum(weight.numel() for weight in model.trunk.parameters())  # pyright: ignore[reportOptionalMemberAccess]
    held = [int((tmp_path / "two" / f"held{i}").read_text()) for i in (0, 1)]
    assert sum(held) == trunk
    assert max(held) < 0.6 * trunk


TRAINED: dict[str, dict[str, Any]] = {
    "full": {"base": "full", **ENDS, "warm_start": True, "gradient_checkpointing": True},
    "lora": {"base": "lora", "base_lora": LORA, **ENDS, "gradient_checkpointing": True},
    "best": {"training": {"batch_groups": 2}, "phase0": {**LONG, "l2": 0.1}, "phase2": {"lora": LORA}},
}
ROWS = """
from pathlib import Path
from dmoerm.training import phases
from dmoerm.training.processes import rank
from dmoerm.training.loop import BestTracker

fit = phases.fit

def counted(module, *args, **options):
    if options["folder"].name == "branch":
        found = Path(__file__).parent / f"trained{rank()}"
        found.write_text(str(sum(p.numel() for _, p in BestTracker(module, options["step"]).trained())))
    return fit(module, *args, **options)

phases.fit = counted
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", TRAINED)
def test_two_processes_train_a_sharded_branch_as_one(
    tiny_config: Callable[..., Config], tmp_path: Path, form: str
) -> None:
    config = tiny_config(**TRAINED[form])
    two = trained(config, tmp_path / "two", "--no-eval", how="fsdp2", command=SMALL + ROWS)
    one = written(config, tmp_path / "one")[1]
    run = train_quietly(one)
    assert_close(two, one)
    rows = [int((tmp_path / "two" / f"trained{i}").read_text()) for i in (0, 1)]
    branch = sum(weight.numel() for weight in run.model.general.branch.parameters())
    if form != "lora":  # which is whole on both
        assert branch < sum(rows) < 1.1 * branch
        assert max(rows) < 0.6 * branch


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(1,), (0, 1)])
def test_a_killed_run_goes_on_with_its_rows_of_a_branch(
    tiny_config: Callable[..., Config], tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    config = tiny_config(**{**ENDS, "training": {**END, "batch_groups": 2}, "phase0": LONG})
    two = killed(config, tmp_path / "two", "phase0/branch", 14, "fsdp2", ranks)
    one = written(config, tmp_path / "one")[1]
    trained(config, tmp_path / "two", "--no-eval", how="fsdp2")
    train_quietly(one)
    assert_close(two, one)


def test_a_backbone_with_weights_elsewhere_is_refused(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(base="frozen")
    layers = [layer for part in processes._parts(model) for layer in processes._layers(part)]
    processes._check_layers(model, layers)
    with pytest.raises(BackboneError, match="'llama' keeps weights outside linear layers"):
        processes._check_layers(model, layers[: len(layers) // 2])


# --- one process that holds all shards --------------------------------------------------------------------------------


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


def general_state(training: Training) -> dict[str, Tensor]:
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
    step, shared = {"epochs": 0.5, "evaluations": 1, "l2": 0.1}, {**END, "batch_groups": 4}
    settings: dict[str, Any] = {
        "base": base,
        "training": shared,
        "phase0": step,
        **({"base_lora": LORA} if base == "lora" else {}),
    }
    one = begun(**settings, output=str(tmp_path / "one"))
    expected = general_state(one)
    with one_shard(tmp_path, monkeypatch):
        other = begun(**settings, gradient_checkpointing=again, output=str(tmp_path / "other"))
        general = other.run.model.general
        assert is_sharded(general)
        state = general_state(other)
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
