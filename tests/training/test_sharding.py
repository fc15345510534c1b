"""With weights in pieces, two processes make what one makes of whole ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer, train_quietly
from transformers import AutoConfig, AutoModelForSequenceClassification

from dmoerm.config import Config
from dmoerm.errors import BackboneError, ConfigError
from dmoerm.training import sharding

from . import launching
from .launching import (
    BOTH_KILLED,
    END,
    ENDS,
    KILLED,
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
    monkeypatch.setattr(sharding, "sharded", lambda: True)
    for name, value in {"FSDP_VERSION": "2", **given}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train_quietly(tiny_config(**changes))


PIECES = {"base": "frozen", **ENDS, "phase2": {**END, "lora": LORA, "batch_groups": 5}}
HELD = """
from pathlib import Path
from dmoerm.training.processes import rank

def held(weight):
    part = weight.to_local() if hasattr(weight, "to_local") else weight
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
def test_two_processes_train_and_measure_as_one(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    from dmoerm.cli.train import train_and_measure

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


@pytest.mark.slow
def test_a_killed_run_goes_on_and_two_processes_evaluate_it_as_one(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    from dmoerm.cli.train import train_and_measure

    how = "fsdp2"
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


TRAINED: dict[str, dict[str, Any]] = {
    "full": {"base": "full", **ENDS, "warm_start": True, "gradient_checkpointing": True},
    "lora": {"base": "lora", "base_lora": LORA, **ENDS, "gradient_checkpointing": True},
    "best": {**ENDS, "phase0": {**LONG, "l2": 0.1}},
}
ROWS = """
from pathlib import Path
from dmoerm.training import phases
from dmoerm.training.processes import rank
from dmoerm.training.best import BestTracker

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
def test_two_processes_start_from_a_reward_model_as_one(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    """Only the main process reads its head; the others rescale the same weights when they fit the normalizer."""
    backbone = AutoConfig.from_pretrained(tiny_config().backbone.path, num_labels=1, pad_token_id=0)
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(backbone).save_pretrained(tmp_path / "reward")
    tiny_tokenizer().save_pretrained(tmp_path / "reward")
    config = tiny_config(**TRAINED["full"], backbone={"path": str(tmp_path / "reward")})
    two = trained(config, tmp_path / "two", "--no-eval", how="fsdp2", command=SMALL + "main()")
    one = written(config, tmp_path / "one")[1]
    assert train_quietly(one).model.general.head.has_start
    assert_close(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("code", [KILLED, BOTH_KILLED], ids=["one", "both"])
def test_a_killed_run_goes_on_with_its_rows_of_a_branch(
    tiny_config: Callable[..., Config], tmp_path: Path, code: str
) -> None:
    config = tiny_config(**{**ENDS, "phase0": {**LONG, **END}})
    two, one = (
        killed(config, tmp_path / "two", "phase0/branch", 14, "fsdp2", code),
        written(config, tmp_path / "one")[1],
    )
    trained(config, tmp_path / "two", "--no-eval", how="fsdp2")
    train_quietly(one)
    assert_close(two, one)


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
    layers = [layer for part in sharding._parts(model) for layer in sharding._layers(part)]
    sharding._check_layers(model, layers)
    with pytest.raises(BackboneError, match="'llama' keeps weights outside linear layers"):
        sharding._check_layers(model, layers[: len(layers) // 2])
