"""A run and its steps: the result of a finished step is stored in the run's folder and is not computed again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from ..chat.truncation import TruncationCounts
from ..config import Config
from ..errors import CheckpointError, DataError
from ..io.paths import complete_folder
from ..model import DMoERM
from ..model.heads import HeadPosterior
from ..model.layers import Decoder, recompute_layers
from ..model.memory import training_tokens
from ..names import folder_name
from ..schema import Group
from .cache import ActivationCache
from .examples import PreferenceExample, encoded_examples
from .loop import FitResult
from .processes import barrier, broadcast, is_main, smallest, whole_state

State = dict[str, Tensor]
StepMetrics = dict[str, float]
"""`loss`, `accuracy`, `steps` and `seconds` of a step; `loss/NAME` and `accuracy/NAME` are those of one expert."""
HeadKey = tuple[str | None, str]
"""The task of a head (None: the general model) and the name of its score."""
_STATE = "state.safetensors"
_MIN_SHARE = 0.02  # of a task in a prompt; less changes nothing and costs as much
_SECONDS_BETWEEN_LINES = 20


class Progress:
    """Show a bar for the run and one for the current step; print a line when a step ends.

    If the output is not a terminal, which could show bars, print a line every 20 seconds instead.

    Args:
        console: where to write; None: standard error. Only the main process writes.
        quiet: write nothing.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console if console and is_main() else Console(stderr=True, quiet=quiet or not is_main())
        columns = (TextColumn("{task.description:44}"), BarColumn(24), TextColumn("{task.fields[figures]}"))
        self._bars = RichProgress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
        self._all = self._bars.add_task("all steps", total=None, figures="")
        self._step: Any = None
        self._figures: dict[str, float] = {}
        self._printed = time.monotonic()

    @contextlib.contextmanager
    def run(self, steps: int) -> Iterator[None]:
        """Show the bars of a run with this number of steps within the context."""
        self._bars.update(self._all, total=steps)
        with self._bars:
            yield

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show a step's bar within this context, then print its final figures."""
        self._figures, self._printed = {}, time.monotonic()
        self._step = self._bars.add_task(name, total=None, figures="")
        yield
        self._bars.remove_task(self._step)
        self._bars.advance(self._all)
        self.say(f"{name:44} {self._text()}")

    def skip(self, name: str, status: str = "done before") -> None:
        """Print that a step needs no training here: an earlier run or another process has finished it."""
        self._bars.advance(self._all)
        self.say(f"{name:44} {status}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def count(self, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """Show how much of the current step is done, and add figures to those shown."""
        self._figures |= figures or {}
        self._bars.update(self._step, completed=done, total=total, figures=self._text())
        if self.console.is_terminal or time.monotonic() - self._printed <= _SECONDS_BETWEEN_LINES:
            return
        self._printed = time.monotonic()
        bar = self._bars.tasks[self._bars.task_ids.index(self._step)]
        left = "" if bar.time_remaining is None else f"  {bar.time_remaining:.0f} s left"
        self.say(f"{bar.description:44} {done:.0f}/{total:.0f}{left}  {self._text()}")

    def show(self, figures: Mapping[str, float]) -> None:
        """Add figures of the current step to those shown."""
        self._figures |= figures
        self._bars.update(self._step, figures=self._text())

    def _text(self) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in self._figures.items())


@dataclass
class Run:
    """The state that all phases share: settings, model, activation cache, folder and progress output.

    Attributes:
        truncation: counts of the training part.
        training: the examples and the out-of-fold weights, once all steps are finished.
    """

    config: Config
    model: DMoERM
    cache: ActivationCache
    folder: Path
    progress: Progress
    truncation: TruncationCounts = field(default_factory=TruncationCounts)
    training: Training | None = field(default=None, repr=False, compare=False)

    @property
    def frozen(self) -> bool:
        """Whether the branch stays as pretrained: only heads, and LoRA experts if configured, are trained."""
        return self.config.base == "frozen"

    def fit_options(self, checkpoint_dir: Path, seed: str | None = None) -> dict[str, Any]:
        """Return the options of a `fit` in this run.

        Args:
            checkpoint_dir: folder of the checkpoints.
            seed: name that the seed is derived from; None: the path of `checkpoint_dir` in the run's folder.
        """
        return {
            "folder": checkpoint_dir,
            "seed": self.seed(seed or str(checkpoint_dir.relative_to(self.folder / "checkpoints"))),
            "training": self.config.training,
            "report_to": self.config.report_to,
            "watch": self.progress.count,
        }

    def examples(self, groups: Sequence[Group]) -> list[PreferenceExample]:
        """Encode the groups and order their pairs. This is a collective."""
        return encoded_examples(self.cache.root / "tokens", self.model.encoder, groups)

    def recompute(self, part: PreTrainedModel) -> None:
        """Let the layers of a part run again in the backward pass if `gradient_checkpointing` says so."""
        if form := self.config.gradient_checkpointing:
            recompute_layers(part, offload=form == "offload")

    def pass_tokens(self, branch: Decoder) -> int:
        """Return the tokens of a training pass through a branch, the same for all processes."""
        return smallest(training_tokens(branch, checkpointing=self.config.gradient_checkpointing))

    def seed(self, name: str) -> int:
        """Derive a step's seed from the run's, so that a step's result does not depend on the steps before it."""
        return int.from_bytes(hashlib.sha256(f"{self.config.seed}/{name}".encode()).digest()[:4], "big")

    def finished(self, name: str) -> bool:
        """Return whether a step is finished, here or by another process that shares the folder."""
        return (self.folder / "steps" / name / _STATE).exists()

    def step(self, name: str, train: Callable[[Path], tuple[State, StepMetrics]]) -> State:
        """Run a step, or read its result if it is finished.

        Args:
            name: for example `phase2/chitchat`.
            train: receives a folder for checkpoints; returns the trained state and the metrics.
        """
        done, checkpoints = self.folder / "steps" / name, self.folder / "checkpoints" / name
        if broadcast(is_main() and self.finished(name)):
            self.progress.skip(name)
            if is_main():
                shutil.rmtree(checkpoints, ignore_errors=True)  # left by a run that was killed after it wrote the step
            return _read(done / _STATE)
        set_seed(self.seed(name))
        start = time.monotonic()
        with self.progress.step(name):
            state, result = train(checkpoints)
            state = whole_state(state)
            self.progress.show({name: result[name] for name in ("loss", "accuracy") if name in result})
        if is_main():
            try:
                with complete_folder(done) as folder:
                    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / _STATE)
                    (folder / "metrics.json").write_text(json.dumps({**result, "seconds": time.monotonic() - start}))
            except (OSError, SafetensorError) as error:
                hint = "free some space and run again"
                raise CheckpointError(f"{done}: the step cannot be written: {error}; {hint}") from error
            shutil.rmtree(checkpoints, ignore_errors=True)
        barrier()
        return state if is_main() else _read(done / _STATE)

    def stored(self, name: str) -> State:
        """Return the result of a finished step."""
        return _read(self.folder / "steps" / name / _STATE)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return step → metrics of all finished steps."""
        return finished_steps(self.folder)


class FoldWeights(NamedTuple):
    """Weights (K, D) of a linear head, the k-th fitted without fold k, and their accuracy () on what was left out."""

    weights: Tensor
    accuracy: Tensor


@dataclass
class Training:
    """A run and its examples; the router's step assigns a task to examples that have none.

    Attributes:
        folds: out-of-fold weights of the heads that were fitted exactly.
        posteriors: of the heads' weights.
        routes: prompt → probabilities (T,) by the router that was fitted without it; empty if the router has its own
            language model.
        soft: a task's heads are fitted to the overall labels of all prompts, each weighted by the task's probability.
    """

    run: Run
    train: Sequence[PreferenceExample]
    validation: Sequence[PreferenceExample]
    folds: dict[HeadKey, FoldWeights] = field(default_factory=dict)
    posteriors: dict[HeadKey, HeadPosterior] = field(default_factory=dict)
    routes: dict[str, Tensor] = field(default_factory=dict)
    soft: bool = False

    def step_name(self, phase: str, task: str) -> str:
        """Return the name of a task's step."""
        return f"soft/{step_name(phase, task)}" if self.soft else step_name(phase, task)

    def read(self, state: State, prefix: str, task: str | None, name: str) -> None:
        """Read from a step's state what is known of the head of a score, if it is there."""
        if f"{prefix}_folds" in state:
            self.folds[task, name] = FoldWeights(state[f"{prefix}_folds"], state[f"{prefix}_accuracy"])
        if f"{prefix}_rest" in state:
            self.posteriors[task, name] = HeadPosterior(state[f"{prefix}_rest"], state[f"{prefix}_basis"])

    def scored_heads(self, task: str) -> dict[HeadKey, Any]:
        """Return the head of each score that a task's aggregator reads, in its order."""
        model, task_model = self.run.model, self.run.model.task_model(task)
        base = {"per_task": task_model.base.head, "general": model.general.head, "all_labels": task_model.all_labels}
        experts = zip(task_model.experts.capabilities, task_model.experts.heads, strict=True)
        heads: dict[HeadKey, Any] = {(task, name): head for name, head in experts}
        names = task_model.aggregator.base_names
        return heads | {(None if name == "general" else task, name): base[name] for name in names}

    def is_exact(self, task: str) -> bool:
        """Return whether all heads of a task and its aggregator were fitted exactly: its scores are out of fold."""
        names = ("per_task", *self.run.model.task_model(task).experts.capabilities)
        keys = [(None, "general"), *((task, name) for name in names)]
        return self.run.config.phase3.fit == "exact" and all(key in self.folds for key in keys)

    def of(self, task: str) -> tuple[list[PreferenceExample], list[PreferenceExample]]:
        """Return a task's training and validation examples; see `soft`.

        Raises:
            DataError: no training example has an overall preference.
        """
        train, validation = (
            self._shared_out(part, task) if self.soft else [e for e in part if e.task == task]
            for part in (self.train, self.validation)
        )
        if not any(e.pairs.get(None) for e in train):
            hint = "add groups of this task, or set a smaller data.validation_fraction"
            raise DataError(
                "no group to train on has this task and an overall preference", field="task", value=task, hint=hint
            )
        return train, validation

    def _shared_out(self, examples: Sequence[PreferenceExample], task: str) -> list[PreferenceExample]:
        """Return a task's share: overall pairs weighted by its probability, and capability pairs of its own prompts."""
        index, parts = self.run.model.router.tasks.index(task), list[PreferenceExample]()
        for example in examples:
            share, has_task = float(self.routes[example.prompt][index]), example.task == task
            if share >= _MIN_SHARE or has_task:
                pairs = {name: row for name, row in example.pairs.items() if has_task or name is None}
                pairs[None] = [pair._replace(weight=pair.weight * share) for pair in pairs.get(None, ())]
                parts.append(example.with_task(task).with_pairs(pairs))
        return parts


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        name: its path under `steps/`.
        needs: names of the steps whose results it reads; they are before it in the list.
        do: trains it, or loads its result if it is finished.
    """

    name: str
    needs: tuple[str, ...]
    do: Callable[[Training], None]


def step_metrics(fits: Sequence[FitResult], names: Sequence[str] = ()) -> StepMetrics:
    """Return the means over the experts, and each expert's metrics if names are given."""
    fields = ("loss", "accuracy", "steps")
    mean = {field: sum(getattr(result, field) for result in fits) / len(fits) for field in fields}
    for name, result in zip(names, fits, strict=False):
        mean |= {f"loss/{name}": result.loss, f"accuracy/{name}": result.accuracy}
    return mean


def posterior_state(posterior: HeadPosterior | None, prefix: str) -> State:
    """Return the part of a step's state from which `Training.read` reads a head's posterior."""
    return {} if posterior is None else {f"{prefix}_{name}": t for name, t in posterior._asdict().items()}


def part_of(state: State, prefix: str) -> State:
    """Return the tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def step_name(phase: str, task: str) -> str:
    """Return the name of a task's step, which is its path under `steps/`."""
    return f"{phase}/{folder_name(task)}"


def finished_steps(folder: Path) -> dict[str, dict[str, float]]:
    """Return step → metrics of all finished steps in a run's folder, the router first, then by name."""
    root = folder / "steps"
    files = {str(file.parent.relative_to(root)): file for file in root.rglob("metrics.json")}
    names = sorted(files, key=lambda name: (name != "router", name))
    return {name: json.loads(files[name].read_text()) for name in names}


def _read(file: Path) -> State:
    try:
        # copied into aligned memory, as in `read_tensors`, so that a resumed run computes the same digits
        return {name: t.clone() for name, t in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: is damaged: {error}; delete the folder {file.parent} and run again to repeat this step"
        ) from None
