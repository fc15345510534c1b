"""The checkpoints that Trainer leaves in a folder: which one to go on from, and what a full disk does to them."""

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

_NO_ROOM = ("No space left", "file write failed", "unexpected pos", "quota exceeded")  # a full disk, by who writes


def last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint; one that a kill or a full disk cut short is removed."""
    while folder.exists() and (checkpoint := get_last_checkpoint(str(folder))):
        try:
            json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def had_ended(checkpoint: str, patience: int) -> bool:
    """Whether early stopping ended the training at this checkpoint; by itself, Trainer would go on from there."""
    return bool((load_file(f"{checkpoint}/model.safetensors")["patience_count"] >= patience).all())


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """A checkpoint that finds no room is one error, whoever was writing it: `CheckpointError`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not any(sign in str(error) for sign in _NO_ROOM):
            raise
        raise CheckpointError(
            f"{folder}: a checkpoint cannot be written: {str(error).splitlines()[0]}; "
            "free some space and run again: training goes on from the last whole checkpoint"
        ) from error
