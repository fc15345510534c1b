"""What a checkpoint keeps of the prompts that the model was trained on; the prompts themselves are not kept.

`training_prompts.txt` has a digest of each, sorted, one per line: the first 16 hex digits of the SHA-256 of
`prompt_key(prompt)`. A digest does not reveal its prompt, but anyone with a prompt can check whether it is in the file.

`router/prompt_statistics.safetensors` has what a router needs to learn a new task without the others' prompts: for
each task the mean of its prompts' embeddings and their covariance, as a diagonal and a few directions.

Shapes: n prompts, d hidden width, R ≤ 32 directions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..names import folder_name
from ..schema import Prompt, prompt_key
from .integrity import read_tensors, write_tensors

PROMPTS_FILE = "training_prompts.txt"
_STATISTICS_FILE = "router/prompt_statistics.safetensors"
_VALID = re.compile(r"(?:[0-9a-f]{16}\n)*")
_MAX_RANK = 32


@dataclass(frozen=True)
class TrainingPrompts:
    """The training prompts of a model, including its validation part.

    `prompt in training_prompts` compares prompts as the split into training and test part does: white space and Unicode
    normalization forms are ignored.
    """

    digests: frozenset[str]

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> Self:
        """Build the set from prompts."""
        return cls(frozenset(map(_digest, prompts)))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read a checkpoint's set; None if it has none. Raise `CheckpointError` for a file of something else."""
        file = folder / PROMPTS_FILE
        if not file.is_file():
            return None
        text = file.read_text(encoding="ascii", errors="replace")
        if not _VALID.fullmatch(text):
            raise CheckpointError(f"{file}: is not a list of prompt digests; train again, or delete the file")
        return cls(frozenset(text.split()))

    def write(self, folder: Path) -> None:
        """Write the set into a checkpoint."""
        (folder / PROMPTS_FILE).write_text("".join(f"{digest}\n" for digest in sorted(self.digests)), encoding="ascii")

    def __contains__(self, prompt: Prompt) -> bool:
        return _digest(prompt) in self.digests

    def __or__(self, other: TrainingPrompts) -> TrainingPrompts:
        return TrainingPrompts(self.digests | other.digests)

    def __len__(self) -> int:
        return len(self.digests)


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(prompt_key(prompt).encode("utf-8", "surrogatepass")).hexdigest()[:16]


class TaskPrompts(NamedTuple):
    """Mean and covariance, diagonal `rest` + basisᵀ basis, of the embeddings of a task's prompts."""

    size: Tensor  # (), the number of prompts
    mean: Tensor  # (d,)
    rest: Tensor  # (d,)
    basis: Tensor  # (R, d)

    @classmethod
    def of(cls, vectors: Tensor) -> Self:
        """Compute them from embeddings (n, d), n ≥ 1."""
        vectors = vectors.double().cpu()
        mean = vectors.mean(0)
        scaled = (vectors - mean) / max(len(vectors) - 1, 1) ** 0.5
        _, values, directions = torch.linalg.svd(scaled, full_matrices=False)
        basis = (values[:, None] * directions)[:_MAX_RANK]
        rest = (scaled.square().sum(0) - basis.square().sum(0)).clamp(min=0)
        return cls(torch.tensor(float(len(vectors))), mean.float(), rest.float(), basis.float().contiguous())

    def fits(self, width: int) -> bool:
        """Return whether the shapes are those of embeddings of this width."""
        vectors = [tensor.shape for tensor in self[:3]] == [(), (width,), (width,)]
        return vectors and self.basis.ndim == 2 and self.basis.shape[1] == width


@dataclass(frozen=True, eq=False)
class PromptStatistics:
    """Task → statistics of its training prompts."""

    tasks: Mapping[str, TaskPrompts]

    def draw(self, task: str, count: int, generator: torch.Generator) -> Tensor:
        """Draw embeddings (count, d) from a Gaussian with the task's mean and the covariance that all tasks share.

        The shared covariance is the mean over all tasks' prompts of their task's covariance.
        """
        parts = list(self.tasks.values())
        sizes = torch.stack([part.size for part in parts])
        sources = torch.multinomial(sizes, count, replacement=True, generator=generator)
        vectors = self.tasks[task].mean.repeat(count, 1)
        for i, part in enumerate(parts):
            rows = sources == i
            vectors[rows] += torch.randn(int(rows.sum()), len(part.basis), generator=generator) @ part.basis
            vectors[rows] += torch.randn(int(rows.sum()), len(part.rest), generator=generator) * part.rest.sqrt()
        return vectors

    def only(self, tasks: Iterable[str]) -> PromptStatistics:
        """Return the statistics of some of the tasks."""
        kept = set(tasks)
        return PromptStatistics({task: part for task, part in self.tasks.items() if task in kept})

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name, `<folder name of the task>.<field>`."""
        parts = sorted(self.tasks.items())
        return {f"{folder_name(task)}.{field}": t for task, part in parts for field, t in part._asdict().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], tasks: Iterable[str]) -> Self | None:
        """Read the statistics of these tasks from `state`; return None unless all are there."""
        keys = {task: [f"{folder_name(task)}.{field}" for field in TaskPrompts._fields] for task in tasks}
        if not all(key in state for names in keys.values() for key in names):
            return None
        return cls({task: TaskPrompts(*(state[key].cpu() for key in names)) for task, names in keys.items()})

    @classmethod
    def read(cls, folder: Path, tasks: Iterable[str], width: int) -> Self | None:
        """Read a checkpoint's statistics; return None if the checkpoint has none.

        Raises:
            CheckpointError: the file is damaged, or does not fit the tasks or the embeddings' width d.
        """
        file = folder / _STATISTICS_FILE
        if not file.is_file():
            return None
        statistics = cls.from_state(read_tensors(file), tasks)
        if statistics is None or not all(part.fits(width) for part in statistics.tasks.values()):
            raise CheckpointError(f"{file}: does not fit config.json; copy the model again, or delete the file")
        return statistics

    def write(self, folder: Path) -> None:
        """Write the statistics into a checkpoint."""
        write_tensors(self.state(), folder / _STATISTICS_FILE)
