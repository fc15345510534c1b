"""Two processes train and measure as one does, and go on where one of them was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config import load_config_from_file
from safetensors.torch import load_file
from tiny import make_tiny_config, train_quietly

from dmoerm import training
from dmoerm.config import Config, dump_config
from dmoerm.data.loading import load_data
from dmoerm.errors import ConfigError
from dmoerm.training import Run, sharding

CONFIGS = Path(training.__file__).parents[1] / "configs" / "accelerate"


@pytest.mark.parametrize(
    ("kind", "given", "changes", "message"),
    [
        ("FSDP", {}, {"base": "full"}, r"FSDP divides the weights that stay frozen.*set base to frozen.*ddp.yaml"),
        ("FSDP", {}, {"base": "frozen", "router": {"kind": "own"}}, "set router.kind to trunk"),
        ("FSDP", {"FSDP_VERSION": "1"}, {"base": "frozen"}, "fsdp_version is 1; set it to 2"),
        ("FSDP", {"FSDP_OFFLOAD_PARAMS": "true"}, {"base": "frozen"}, "fsdp_offload_params is true; set it to false"),
        ("DEEPSPEED", {}, {"base": "frozen"}, "zero_stage is 2; set it to 3"),
        (
            "DEEPSPEED",
            {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            {"base": "lora"},
            "DEEPSPEED divides .* base to frozen",
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


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_shipped_configs(file: Path) -> None:
    found = load_config_from_file(str(file))
    assert found.num_processes > 1


# --- whole runs ----------------------------------------------------------------------------------------------------

# Dropout in a LoRA is drawn by each process for its own groups, so that runs with it agree on average alone. What is
# kept is the end, which is all of the training; in the last form, for some steps, the best.
LORA = {"rank": 2, "dropout": 0.0}
END = {"best_by": "end"}
ENDS = {"router": END, "phase0": END, "phase1": END, "phase2": {**END, "lora": LORA}, "phase3": END}
FORMS: dict[str, dict[str, Any]] = {
    "all weights": ENDS,
    "frozen": {"base": "frozen", **ENDS, "phase2": {**END, "lora": {"rank": 0}}},
    "lora": {"base": "lora", "base_lora": LORA, **ENDS},
    "head first, uneven": {
        "router": {"kind": "own", "epochs": 2, "learning_rate": 1e-3, "batch_groups": 5},
        "phase0": {"batch_groups": 3, "head_first": {"epochs": 2, "batch_groups": 5}},
        "phase1": {"batch_groups": 4, "gradient_accumulation": 2, **END},
        "phase2": {"batch_groups": 3, "lora": LORA, **END},
        "warm_start": True,
    },
}


# Passes and parts of batches so small that both processes have some, though not equally many.
SMALL = """
from dmoerm.cli import main
from dmoerm.model import DMoERM
from dmoerm.model.batching import batches
from dmoerm.training import batches as groups, cache, embedding, run

cut = groups._cut
groups._cut = lambda items, budget: cut(items, 256)
cache.batches = lambda texts, budget: batches(texts, 256)
embedding._BATCH_TOKENS = 256
DMoERM.pass_tokens = lambda self, tokens: 256
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
    paths = os.pathsep.join(
        [str(tests), str(tests.parent), *[str(DEEPSPEED)] * (how == "zero3"), os.environ.get("PYTHONPATH", "")]
    )
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{how}.yaml")]
    start += ["--num_processes", "2", "--main_process_port", "0"]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *command], env=environment, check=False, capture_output=True, text=True, timeout=300)


def artefacts(config: Config) -> dict[str, torch.Tensor]:
    """Every tensor that the run has left, of its steps and of its model."""
    root = Path(config.output)
    files = [*root.glob("steps/**/*.safetensors"), *root.glob("model/**/*.safetensors")]
    return {f"{file.relative_to(root)}: {name}": t for file in files for name, t in load_file(file).items()}


def assert_close(one: Config, other: Config, tolerance: float = 1e-4) -> None:
    found, expected = artefacts(one), artefacts(other)
    assert found.keys() == expected.keys()
    assert any(name.startswith("model/") for name in found)
    apart = {name: float((found[name].float() - t.float()).abs().max()) for name, t in expected.items() if t.numel()}
    worst = max(apart, key=lambda name: apart[name])
    assert apart[worst] <= tolerance, f"{worst}: {apart[worst]:.2g}"


def measured(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    return {name: results[name] for name in ("consistency", "paired", "capabilities", "router", "calibration")}


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


def test_two_processes_train_as_one(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config(**FORMS["all weights"])
    two = trained(config, tmp_path / "two", "--no-eval")
    assert len(list((tmp_path / "two" / "cache").rglob("*.safetensors"))) == 2  # one by each
    one = written(config, tmp_path / "one")[1]
    train_quietly(one)
    assert_close(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_they_measure_the_same_too(tiny_config: Callable[..., Config], tmp_path: Path, form: str) -> None:
    from dmoerm.cli.train import train_and_measure

    config = tiny_config(**FORMS[form])
    two, one = trained(config, tmp_path / "two"), written(config, tmp_path / "one")[1]
    train_and_measure(one, "train")
    assert_close(two, one)
    assert approximately(measured(Path(two.output)), measured(Path(one.output)))


# --- weights in pieces ---------------------------------------------------------------------------------------------

PIECES = {"base": "frozen", **ENDS, "phase2": {**END, "lora": LORA, "batch_groups": 5}}
DEEPSPEED = Path(sys.prefix) / "deepspeed"  # not among the packages: whatever imports accelerate would import it
installed = pytest.mark.skipif(not DEEPSPEED.exists(), reason="DeepSpeed is not there: make test-all installs it")
ZERO = pytest.param("zero3", marks=[pytest.mark.slow, installed])
HELD = """
from pathlib import Path
from dmoerm.training.processes import rank

def held(weight):
    part = weight.to_local() if hasattr(weight, "to_local") else getattr(weight, "ds_tensor", weight)
    return part.numel()

place = run.place

def placed(model):
    model = place(model)
    count = sum(held(weight) for weight in model.trunk.parameters())
    (Path(__file__).parent / f"held{rank()}").write_text(str(count))
    return model

run.place = placed
main()
"""


@pytest.mark.parametrize("how", ["fsdp2", ZERO])
def test_with_weights_in_pieces_two_processes_train_and_measure_as_one(
    tiny_config: Callable[..., Config], tmp_path: Path, how: str
) -> None:
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
def test_with_weights_in_pieces_a_killed_run_goes_on_and_two_processes_evaluate_it_as_one(
    tiny_config: Callable[..., Config], tmp_path: Path, how: str
) -> None:
    from dmoerm.cli.train import train_and_measure

    config = tiny_config(**{**PIECES, "phase2": {**LONG, **END, "lora": LORA}})
    two, one = killed(config, tmp_path / "two", "phase2/chitchat/lora", 7, how), written(config, tmp_path / "one")[1]
    trained(config, tmp_path / "two", "--no-eval", how=how)
    train_and_measure(one, "train")
    assert_close(two, one)
    asked = launch(str(tmp_path / "two" / "command.py"), "eval", two.output, "--report", two.output, how=how)
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert approximately(measured(Path(two.output)), measured(Path(one.output)))


@pytest.mark.slow
def test_two_processes_evaluate_as_one(trained_run: Run, tmp_path: Path) -> None:
    from dmoerm.evaluation import evaluate, write_results

    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    done = launch(str(script), "eval", str(trained_run.folder), "--report", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Consistency on held-out prompts") == 1
    test = load_data(trained_run.config).test
    write_results(tmp_path / "one" / "results.json", evaluate(trained_run.model, test, trained_run.config))
    assert approximately(measured(tmp_path / "two"), measured(tmp_path / "one"))


KILLED = """
import os, signal, sys
from dmoerm.config import load_config
from dmoerm.training import train
from dmoerm.training.processes import rank
from dmoerm.training.progress import Progress
from test_run import kill_at

if rank() == 1:
    Progress.on_step_end = kill_at({step!r}, {at}, lambda: os.kill(os.getpid(), signal.SIGKILL))
train(load_config(sys.argv[1]))
"""


def killed(config: Config, folder: Path, step: str, at: int, how: str = "ddp_cpu") -> Config:
    """The settings of a run of which one process was killed in that step."""
    file, broken = written(config, folder)
    script = folder / "killed.py"
    script.write_text(KILLED.format(step=step, at=at))
    ended = launch(str(script), str(file), how=how)
    assert ended.returncode != 0
    assert "Signal 9" in ended.stderr, ended.stderr[-3000:]
    assert not (Path(broken.output) / "model").exists()
    assert list((Path(broken.output) / "checkpoints" / step).glob("checkpoint-*"))
    return broken


LONG = {"epochs": 4, "batch_groups": 2, "evaluations": 4, "learning_rate": 1e-2}
RESUMABLE = {"phase0": LONG, "phase2": {**LONG, "lora": {"rank": 2, "dropout": 0.2}}, "phase3": LONG}


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
