"""With frozen weights in pieces, two processes make what one makes of whole ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import train_quietly

from dmoerm.config import Config
from dmoerm.errors import BackboneError, ConfigError
from dmoerm.training import sharding

from . import launching
from .launching import (
    DEEPSPEED,
    END,
    ENDS,
    LONG,
    LORA,
    SMALL,
    approximately,
    assert_close,
    killed,
    launch,
    measured,
    trained,
    written,
)


@pytest.mark.parametrize(
    ("kind", "given", "changes", "message"),
    [
        ("FSDP", {}, {"base": "full"}, r"FSDP shards frozen weights only.*set base to frozen.*ddp.yaml"),
        ("FSDP", {}, {"base": "frozen", "router": {"kind": "own"}}, "set router.kind to trunk"),
        ("FSDP", {"FSDP_VERSION": "1"}, {"base": "frozen"}, "fsdp_version is 1; set it to 2"),
        ("FSDP", {"FSDP_OFFLOAD_PARAMS": "true"}, {"base": "frozen"}, "fsdp_offload_params is true; set it to false"),
        ("DEEPSPEED", {}, {"base": "frozen"}, "zero_stage is 2; set it to 3"),
        (
            "DEEPSPEED",
            {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            {"base": "lora"},
            "DEEPSPEED shards .* base to frozen",
        ),
    ],
)
def test_pieces_that_cannot_be_are_refused(
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    given: dict[str, str],
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(sharding, "sharding", lambda: kind)
    for name, value in {"FSDP_VERSION": "2", **given}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train_quietly(tiny_config(**changes))


PIECES = {"base": "frozen", **ENDS, "phase2": {**END, "lora": LORA, "batch_groups": 5}}
installed = pytest.mark.skipif(not DEEPSPEED.exists(), reason="DeepSpeed is not there: make test-all installs it")
ZERO = pytest.param("zero3", marks=[pytest.mark.slow, installed])
HELD = """
from pathlib import Path
from dmoerm.training.processes import rank

def held(weight):
    part = weight.to_local() if hasattr(weight, "to_local") else getattr(weight, "ds_tensor", weight)
    return part.numel()

move_to_device = run.move_to_device

def counted(model):
    model = move_to_device(model)
    count = sum(held(weight) for weight in model.trunk.parameters())
    (Path(__file__).parent / f"held{rank()}").write_text(str(count))
    return model

run.move_to_device = counted
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fsdp2", ZERO])
def test_two_processes_train_and_measure_as_one(tiny_config: Callable[..., Config], tmp_path: Path, how: str) -> None:
    from dmoerm.cli.train import train_and_measure

    config = tiny_config(**PIECES)
    two = trained(config, tmp_path / "two", how=how, command=SMALL + HELD)
    one = written(config, tmp_path / "one")[1]
    model, _ = train_and_measure(one, "train")
    assert_close(two, one)
    assert approximately(measured(Path(two.output)), measured(Path(one.output)))
    trunk = sum(weight.numel() for weight in model.trunk.parameters())  # pyright: ignore[reportOptionalMemberAccess]
    held = [int((tmp_path / "two" / f"held{i}").read_text()) for i in (0, 1)]
    norms = sum(weight.numel() for name, weight in model.trunk.named_parameters() if "norm" in name)  # pyright: ignore
    assert sum(held) == trunk + norms  # these alone are whole on both
    assert max(held) < 0.6 * trunk


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fsdp2", ZERO])
def test_a_killed_run_goes_on_and_two_processes_evaluate_it_as_one(
    tiny_config: Callable[..., Config], tmp_path: Path, how: str
) -> None:
    from dmoerm.cli.train import train_and_measure

    config = tiny_config(**{**PIECES, "phase2": {**LONG, **END, "lora": LORA}})
    two, one = killed(config, tmp_path / "two", "phase2/chitchat/lora", 7, how), written(config, tmp_path / "one")[1]
    trained(config, tmp_path / "two", "--no-eval", how=how)
    train_and_measure(one, "train")
    assert_close(two, one)
    command, alone = str(tmp_path / "two" / "command.py"), tmp_path / "one" / "command.py"
    alone.write_text(Path(command).read_text())
    for more in ([], ["--data", config.data.files[0]]):  # from cached activations, and from none
        asked = launch(command, "eval", two.output, "--report", two.output, *more, how=how)
        assert asked.returncode == 0, asked.stderr[-3000:]
        subprocess.run([sys.executable, alone, "eval", one.output, "--report", one.output, *more], check=True)
        assert approximately(measured(Path(two.output)), measured(Path(one.output)))


@pytest.mark.slow
def test_layers_that_stay_whole_after_a_call(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmoerm.cli.train import train_and_measure

    config = tiny_config(**PIECES)
    text = (launching.CONFIGS / "fsdp2.yaml").read_text()
    assert "reshard_after_forward: true" in text
    (tmp_path / "whole.yaml").write_text(text.replace("reshard_after_forward: true", "reshard_after_forward: false"))
    monkeypatch.setattr(launching, "CONFIGS", tmp_path)
    two, one = trained(config, tmp_path / "two", how="whole"), written(config, tmp_path / "one")[1]
    train_and_measure(one, "train")
    assert_close(two, one)
    assert approximately(measured(Path(two.output)), measured(Path(one.output)))


def test_a_backbone_with_weights_elsewhere_is_refused(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(base="frozen")
    layers = sharding._layers(model)
    sharding._check_layers(model, layers)
    with pytest.raises(BackboneError, match="'llama' keeps weights outside linear layers"):
        sharding._check_layers(model, layers[: len(layers) // 2])
