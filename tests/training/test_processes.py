"""Several processes end as one does: the shares of a batch add up to it, and whole runs, also killed ones, agree."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config import load_config_from_file
from safetensors.torch import load_file
from tiny import train_quietly

from dmoerm.config import Config, HeadConfig, dump_config, load_config
from dmoerm.errors import ConfigError
from dmoerm.model.heads import Head
from dmoerm.schema import Pair
from dmoerm.training import batches, router, run
from dmoerm.training.batches import Item, collate_parts
from dmoerm.training.learner import PhaseModel
from dmoerm.training.stacking import HeadStack

WIDTH, LANES = 6, 2
CONFIGS = Path(run.__file__).parents[1] / "configs" / "accelerate"


# --- shares --------------------------------------------------------------------------------------------------------


class Pooled(torch.nn.Module):
    """Heads on the mean of a response's states: the smallest scorer of packed states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = HeadStack([Head(WIDTH, HeadConfig()) for _ in range(LANES)])

    def forward(self, inputs: Any, active: torch.Tensor | None) -> torch.Tensor:
        layout = inputs.layout
        responses = inputs.tokens[layout.prompt_tokens :].split(layout.responses)
        return self.heads(torch.stack([states.mean(0) for states in responses]), active)


def groups(count: int) -> list[Item]:
    """Groups of different lengths, with other lanes and other numbers of pairs each."""
    generator = torch.Generator().manual_seed(count)
    made = []
    for i in range(count):
        prompt = torch.randn(2 + i, WIDTH, generator=generator)
        responses = [torch.randn(1 + (i + n) % 3, WIDTH, generator=generator) for n in range(3)]
        pairs = [Pair(0, 1), Pair(1, 2, 0.7, 0.5), Pair(2, 0)][: 1 + i % 3]
        made.append(Item((prompt, responses), pairs, 0.0, [(i + n) % LANES for n in range(len(pairs))]))
    return made


def seat(monkeypatch: pytest.MonkeyPatch, rank: int, world: int, *modules: Any) -> None:
    """This process takes part as the one of `world`."""
    for module in modules:
        monkeypatch.setattr(module, "world", lambda: world)
        monkeypatch.setattr(module, "own", lambda rows: rows[rank::world])


def gradient(model: PhaseModel, batch: dict[str, Any]) -> list[torch.Tensor]:
    model = copy.deepcopy(model)
    for part in batch["parts"]:
        model(**part)["loss"].backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("count", "world"), [(8, 2), (7, 2), (7, 3), (1, 2), (2, 4)])
@pytest.mark.parametrize("budget", [8192, 8])
def test_the_shares_of_a_batch_add_up_to_it(
    monkeypatch: pytest.MonkeyPatch, count: int, world: int, budget: int
) -> None:
    """The mean of the processes' gradients is the batch's, whoever has how many groups, pairs and parts."""
    scorer = Pooled()
    model = PhaseModel(scorer, 0.1, scorer.heads, lanes=LANES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1  # away from the start, so that the pull to it has a gradient
    whole = gradient(model, collate_parts(LANES, budget)(groups(count)))
    shares = []
    for rank in range(world):
        seat(monkeypatch, rank, world, batches)
        shares.append(gradient(model, collate_parts(LANES, budget)(groups(count))))
    for found, expected in zip(zip(*shares, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.stack(found).mean(0), expected, atol=1e-6, rtol=1e-5)


def test_a_process_without_groups_changes_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    seat(monkeypatch, 1, 2, batches)
    (part,) = collate_parts(LANES)(groups(1))["parts"]
    assert not part["weights"].any()
    assert (part["probability"] == 0.5).all()


@pytest.mark.parametrize("count", [5, 1])
def test_the_routers_shares_add_up_too(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    rows = [(torch.arange(1, 4 + i), i % 3) for i in range(count)]
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))

    class Read(torch.nn.Module):
        def read(self, prompt: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (logits[prompt] * mask[..., None]).sum(1)

        def forward(self, found: torch.Tensor) -> torch.Tensor:
            return found

    phase = router._RouterPhase(Read())  # pyright: ignore[reportArgumentType]
    losses = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        seat(monkeypatch, rank, world, router)
        (part,) = router._collate_ids(rows)["parts"]
        losses.append(phase(**part)["loss"])
    torch.testing.assert_close((losses[1] + losses[2]) / 2, losses[0])


def test_a_batch_with_too_few_groups_is_refused(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "world", lambda: 4)
    config = tiny_config(phase1={"batch_groups": 8, "gradient_accumulation": 4})
    with pytest.raises(ConfigError, match=r"phase1.batch_groups: 8 in 4 accumulated passes leave 2 .* 4 processes"):
        train_quietly(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_shipped_configs(file: Path) -> None:
    found = load_config_from_file(str(file))
    assert found.num_processes > 1


# --- whole runs ----------------------------------------------------------------------------------------------------

# Dropout in a LoRA is drawn by each process for its own groups, so that runs with it agree on average alone. What is
# kept is the end, which is all of the training; but in the last form it is the best.
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
        "phase1": {"batch_groups": 4, "gradient_accumulation": 2},
        "phase2": {"batch_groups": 3, "lora": LORA},
        "warm_start": True,
    },
}


# Passes so small that both processes have some.
COMMAND = """
from dmoerm.cli import main
from dmoerm.model import DMoERM
from dmoerm.model.batching import batches
from dmoerm.training import cache, embedding

cache.batches = lambda texts, budget: batches(texts, 256)
embedding._BATCH_TOKENS = 256
DMoERM.pass_tokens = lambda self, tokens: 256
main()
"""


def written(config: Config, folder: Path) -> tuple[Path, Config]:
    """The settings with an output and a cache of their own, as a file."""
    other = config.model_copy(update={"output": str(folder / "run"), "cache": str(folder / "cache")})
    folder.mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(dump_config(other))
    return file, other


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU by the shipped config."""
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp_cpu.yaml")]
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


def measured(config: Config) -> dict[str, Any]:
    results = json.loads((Path(config.output) / "results.json").read_text())
    return {name: results[name] for name in ("consistency", "paired", "capabilities", "router", "calibration")}


def assert_same_run(config: Config, folder: Path) -> None:
    """Trained and evaluated by two processes and by one."""
    from dmoerm.cli.train import train_and_measure

    file, two = written(config, folder / "two")
    script = folder / "command.py"
    script.write_text(COMMAND)
    done = launch(str(script), "train", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model: ") == 1
    _, one = written(config, folder / "one")
    train_and_measure(one, "train")
    assert_close(two, one)
    assert approximately(measured(two), measured(one))
    shards = list((folder / "two" / "cache").rglob("*.safetensors"))
    assert len(shards) == 4  # for the training and for the evaluation, one by each


def approximately(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(approximately(found[k], v) for k, v in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(approximately, found, expected))
    return found == (pytest.approx(expected, abs=1e-3) if isinstance(expected, float) else expected)


def test_two_processes_train_and_measure_as_one(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    assert_same_run(tiny_config(**FORMS["all weights"]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "all weights"])
def test_every_form_does(tiny_config: Callable[..., Config], tmp_path: Path, form: str) -> None:
    assert_same_run(tiny_config(**FORMS[form]), tmp_path)


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


@pytest.mark.slow
@pytest.mark.parametrize(("step", "at"), [("phase0/branch", 6), ("phase2/chitchat/lora", 5), ("phase3/chitchat", 3)])
def test_a_run_of_which_one_process_was_killed_goes_on_to_the_same_end(
    tiny_config: Callable[..., Config], tmp_path: Path, step: str, at: int
) -> None:
    long = {"epochs": 4, "batch_groups": 2, "evaluations": 4, "learning_rate": 1e-2}
    changes = {"phase0": long, "phase2": {**long, "lora": {"rank": 2, "dropout": 0.2}}, "phase3": long}
    config = tiny_config(**changes)
    ends = []
    for name in ("unbroken", "broken"):
        file, own = written(config, tmp_path / name)
        if name == "broken":
            script = tmp_path / "killed.py"
            script.write_text(KILLED.format(step=step, at=at))
            killed = launch(str(script), str(file))
            assert killed.returncode != 0
            assert str(-signal.SIGKILL) in killed.stderr
            assert not (Path(own.output) / "model").exists()
            assert list((Path(own.output) / "checkpoints" / step).glob("checkpoint-*"))
        done = launch("-m", "dmoerm.cli", "train", str(file), "--no-eval")
        assert done.returncode == 0, done.stderr[-3000:]
        ends.append(own)
    assert_close(*ends, tolerance=1e-6)
    assert load_config(Path(ends[1].output) / "config.yaml") == ends[1]
