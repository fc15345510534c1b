"""The posteriors of all exactly fitted heads: an update with new labels takes them in place of the old labels.

`head_posteriors.safetensors` has them, of each head (D, R) numbers and no text. Older checkpoints do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from ..names import folder_name
from .integrity import read_tensors, write_tensors
from .posterior import HeadPosterior

FILE = "head_posteriors.safetensors"
HeadPosteriors = dict[tuple[str | None, str], HeadPosterior]
"""(task, name of the score) → posterior of the head's weights; the general model's task is None."""


def write_posteriors(posteriors: HeadPosteriors, folder: Path) -> None:
    """Write the posteriors into a checkpoint."""
    state: dict[str, Tensor] = {}
    for (task, name), posterior in posteriors.items():
        state |= {f"{_prefix(task, name)}.{field}": t for field, t in posterior._asdict().items()}
    write_tensors(dict(sorted(state.items())), folder / FILE)


def read_posteriors(folder: Path, tasks: Mapping[str, Sequence[str]], width: int) -> HeadPosteriors:
    """Read a checkpoint's posteriors; return none if the checkpoint has none.

    Args:
        tasks: task → its capabilities.
        width: the embeddings' width D.

    Raises:
        CheckpointError: the file is damaged or does not fit.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    state, posteriors = read_tensors(file), HeadPosteriors()
    for task, name in _scores(tasks):
        tensors = [state.get(f"{_prefix(task, name)}.{field}") for field in HeadPosterior._fields]
        rest, basis = tensors
        if rest is None or basis is None:
            continue
        if rest.dim() or basis.dim() != 2 or len(basis) != width:
            raise CheckpointError(f"{file}: does not fit config.json; copy the model again, or delete the file")
        posteriors[task, name] = HeadPosterior(rest, basis)
    return posteriors


def _scores(tasks: Mapping[str, Sequence[str]]) -> Iterator[tuple[str | None, str]]:
    yield None, "general"
    for task, capabilities in tasks.items():
        for name in ("per_task", "all_labels", *capabilities):
            yield task, name


def _prefix(task: str | None, name: str) -> str:
    return folder_name(name) if task is None else f"{folder_name(task)}/{folder_name(name)}"
