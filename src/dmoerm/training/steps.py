"""The steps of a run: what has been finished is kept on disk and not done again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from ..chat.truncation import TruncationCounts
from ..config import Config, StepConfig
from ..errors import CheckpointError
from ..io.paths import complete_folder
from ..io.storage import Mirror
from ..model import DMoERM
from ..model.checkpoint import current_names
from ..model.packed_attention import Decoder
from ..names import folder_name
from .batches import Collate, PreferenceExample
from .cache import ActivationCache
from .fitting import FitResult, fit
from .processes import agreed, barrier, is_main
from .progress import Progress

State = dict[str, Tensor]
Ended = dict[str, float]
"""How a step ended: `loss`, `consistency`, `steps`; with `/capability` after the name, one capability's."""
_STATE = "state.safetensors"


@dataclass
class Run:
    """What every phase needs: the settings, the model that grows, the cached activations, the folder."""

    config: Config
    model: DMoERM
    cache: ActivationCache
    folder: Path
    progress: Progress
    truncation: TruncationCounts = field(default_factory=TruncationCounts)

    @property
    def frozen(self) -> bool:
        """The branch stays as pretrained; heads alone are trained on cached embeddings (but for LoRA experts)."""
        return self.config.base == "frozen"

    @property
    def mirror(self) -> Mirror:
        """The storage that finished steps and checkpoints are copied to, if `storage` names one."""
        return Mirror(self.config.storage, self.folder)

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """What every fit tells of its course."""
        return [self.progress, _KeepCheckpoints(self.mirror)]

    def finished(self, name: str) -> bool:
        """Whether a step has been done, here or by whoever shares the storage."""
        done = self.folder / "steps" / name
        self.mirror.fetch(done, _STATE)
        return (done / _STATE).exists()

    def seed(self, name: str) -> int:
        """A step's own seed: derived from the run's, so that a step's result does not depend on which ran before."""
        return int.from_bytes(hashlib.sha256(f"{self.config.seed}/{name}".encode()).digest()[:4], "big")

    def step(self, name: str, train: Callable[[Path], tuple[State, Ended]]) -> State:
        """Does a step, or reads what it left when it was done before.

        Args:
            name: such as `phase2/chitchat`.
            train: gets a folder for its checkpoints; returns the trained state and how the fit ended.
        """
        done, checkpoints = self.folder / "steps" / name, self.folder / "checkpoints" / name
        if agreed(is_main() and self.finished(name)):
            self.progress.skip(name)
            if is_main():
                self.mirror.keep(done, _STATE)
                shutil.rmtree(checkpoints, ignore_errors=True)  # a kill may have come before
            return _read(done / _STATE)
        set_seed(self.seed(name))
        start = time.monotonic()
        if is_main():
            self.mirror.fetch(checkpoints)
        barrier()
        with self.progress.step(name):
            state, result = train(checkpoints)
        if is_main():
            self._finish(done, checkpoints, state, {**result, "seconds": time.monotonic() - start})
        barrier()
        return state if is_main() else _read(done / _STATE)

    def _finish(self, done: Path, checkpoints: Path, state: State, metrics: Ended) -> None:
        """Keeps a step's result, here and on the storage, and removes its checkpoints."""
        _write(done, state, metrics)
        self.mirror.keep(done)
        shutil.rmtree(checkpoints, ignore_errors=True)
        self.mirror.prune(checkpoints)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Step → how it ended, of all finished steps."""
        return finished_steps(self.folder)


class _KeepCheckpoints(TrainerCallback):
    """Copies each checkpoint to the storage, and removes there those that are removed here."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            self._mirror.keep(folder / f"checkpoint-{state.global_step}")
            self._mirror.prune(folder)


def fit_step(
    run: Run,
    model: nn.Module,
    parts: Sequence[Sequence[PreferenceExample]],
    collate: Collate,
    step: StepConfig,
    place: Path,
    seed: str | None = None,
) -> list[FitResult]:
    """Fits a module of a run's step, with what the run's settings say of every fit.

    Args:
        parts: training and validation examples.
        place: where its checkpoints lie; seed: what its random streams hang on, if not its place.
    """
    name = seed or str(place.relative_to(run.folder / "checkpoints"))
    trains_branch = any(isinstance(m, Decoder) and _wants_gradients(m) for m in model.modules())
    return fit(
        model,
        *parts,
        collate=collate,
        step=step,
        folder=place,
        seed=run.seed(name),
        shared=trains_branch,
        report_to=run.config.report_to,
        callbacks=run.callbacks,
    )


def _wants_gradients(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def ended(fits: Sequence[FitResult], names: Sequence[str] = ()) -> Ended:
    """Return the mean over the experts, and, if they have names, each expert's own."""
    columns = {"loss": "loss", "consistency": "accuracy", "steps": "steps"}
    mean = {key: sum(getattr(result, field) for result in fits) / len(fits) for key, field in columns.items()}
    for name, result in zip(names, fits, strict=False):
        mean |= {f"loss/{name}": result.loss, f"consistency/{name}": result.accuracy}
    return mean


def _write(done: Path, state: State, metrics: dict[str, float]) -> None:
    try:
        with complete_folder(done) as folder:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / _STATE)
            (folder / "metrics.json").write_text(json.dumps(metrics))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{done}: the step cannot be written: {error}; free some space and run again") from error


def _read(file: Path) -> State:
    try:
        return current_names(load_file(file))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: is damaged: {error}; delete the folder {file.parent} and run again: this step is then done anew"
        ) from None


def step_name(phase: str, task: str) -> str:
    """Return the name of a task's step, which is also its path under `steps/`."""
    return f"{phase}/{folder_name(task)}"


def finished_steps(folder: Path) -> dict[str, dict[str, float]]:
    """Step → how it ended, of all finished steps in a run's folder: the router's first, then by name."""
    root = folder / "steps"
    found = {str(file.parent.relative_to(root)): file for file in root.rglob("metrics.json")}
    return {name: json.loads(found[name].read_text()) for name in sorted(found, key=lambda n: (n != "router", n))}
