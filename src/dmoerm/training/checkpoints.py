"""Checkpoints of transformers' Trainer: find the last complete one, and report a full disk as one error."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from ..errors import CheckpointError

_DISK_FULL = ("No space left", "file write failed", "unexpected pos", "quota exceeded")  # messages of various writers


def last_checkpoint(folder: Path) -> str | None:
    """Return the path of the last complete checkpoint, or None; remove incomplete ones (killed run, full disk)."""
    while folder.exists() and (checkpoint := get_last_checkpoint(str(folder))):
        try:
            json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def stopped_early(checkpoint: str, patience: int) -> bool:
    """Return whether early stopping ended the training at this checkpoint; Trainer alone would train further."""
    return bool((load_file(f"{checkpoint}/model.safetensors")["patience_count"] >= patience).all())


@contextlib.contextmanager
def disk_full_as_error(folder: Path) -> Iterator[None]:
    """Raise `CheckpointError` if a checkpoint does not fit on the disk, whichever library was writing it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not any(sign in str(error) for sign in _DISK_FULL):
            raise
        raise CheckpointError(
            f"{folder}: a checkpoint cannot be written: {str(error).splitlines()[0]}; "
            "free some space and run again: training resumes from the last complete checkpoint"
        ) from error
