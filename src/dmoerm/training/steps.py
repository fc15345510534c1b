"""The steps of a run: what has been finished is kept on disk and not done again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import set_seed

from ..config import Config
from ..errors import ArtefactError
from ..model import DMoERM
from ..paths import complete_folder
from .cache import ActivationCache
from .fitting import Fit
from .processes import agreed, barrier, is_main
from .progress import Progress

State = dict[str, Tensor]
Ended = dict[str, float]
"""How a step ended: `loss`, `consistency`, `steps`; with `/capability` after the name, one capability's."""


@dataclass
class Run:
    """What every phase needs: the settings, the model that grows, the cached activations, the folder."""

    config: Config
    model: DMoERM
    cache: ActivationCache
    folder: Path
    progress: Progress

    @property
    def frozen(self) -> bool:
        """The branch stays as pretrained; heads alone are trained on cached embeddings (but for LoRA experts)."""
        return self.config.base == "frozen"

    @property
    def bf16(self) -> bool:
        """Trained weights are kept in float32 and computed in bfloat16 (mixed precision)."""
        return next(self.model.general.branch.parameters()).dtype == torch.bfloat16

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
        if agreed((done / "state.safetensors").exists()):
            self.progress.skip(name)
            if is_main():
                shutil.rmtree(checkpoints, ignore_errors=True)  # a kill may have come before
            return _read(done / "state.safetensors")
        set_seed(self.seed(name))
        start = time.monotonic()
        with self.progress.step(name):
            state, result = train(checkpoints)
        if is_main():
            _write(done, state, {**result, "seconds": time.monotonic() - start})
            shutil.rmtree(checkpoints, ignore_errors=True)
        barrier()
        return state if is_main() else _read(done / "state.safetensors")

    def metrics(self) -> dict[str, dict[str, float]]:
        """Step → how it ended, of all finished steps."""
        return finished_steps(self.folder)


def ended(fits: Sequence[Fit], names: Sequence[str] = ()) -> Ended:
    """The mean over the lanes, and, if they have names, each lane's own."""
    mean = {key: sum(getattr(fit, key) for fit in fits) / len(fits) for key in ("loss", "consistency", "steps")}
    for name, fit in zip(names, fits, strict=False):
        mean |= {f"loss/{name}": fit.loss, f"consistency/{name}": fit.consistency}
    return mean


def _write(done: Path, state: State, metrics: dict[str, float]) -> None:
    try:
        with complete_folder(done) as folder:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / "state.safetensors")
            (folder / "metrics.json").write_text(json.dumps(metrics))
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{done}: the step cannot be written: {error}; free some space and run again") from error


def _read(file: Path) -> State:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(
            f"{file}: is damaged: {error}; delete the folder {file.parent} and run again: this step is then done anew"
        ) from None


def finished_steps(folder: Path) -> dict[str, dict[str, float]]:
    """Step → how it ended, of all finished steps in a run's folder: the router's first, then by name."""
    root = folder / "steps"
    found = {str(file.parent.relative_to(root)): file for file in root.rglob("metrics.json")}
    return {name: json.loads(found[name].read_text()) for name in sorted(found, key=lambda n: (n != "router", n))}
