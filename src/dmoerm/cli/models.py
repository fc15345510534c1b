"""Load a model for a command: on the accelerator if there is one, and without the messages of the libraries."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..io.paths import model_folder

if TYPE_CHECKING:
    from ..model import DMoERM


def quieten() -> None:
    """Turn off the messages and progress bars of transformers; commands show their own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_model(
    path: str,
    dtype: str | None = None,
    deterministic: bool = False,
    quantization: str = "none",
    device: str | None = None,
) -> DMoERM:
    """Load the model of a run's folder, a model's folder, or a hub name.

    Args:
        path: the folder or the name.
        dtype: precision of trunk and branches, such as float32; None: as saved.
        quantization: `4bit` to hold frozen layers in 4 bits.
        deterministic: prepare CUDA for deterministic matrix products.
        device: such as `cuda:1`; None: the accelerator if there is one.

    Raises:
        CheckpointError: the model does not exist.
    """
    from ..model import DMoERM
    from ..model.loading import limit_kernels

    quieten()
    limit_kernels()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    return DMoERM.from_pretrained(
        model_folder(path), dtype=dtype, device_map=device or "auto", quantization=quantization
    )
