"""Load a model for a command: on the accelerator if there is one, and without the messages of the libraries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import ConfigError
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
    divide: bool = False,
    device: str | None = None,
) -> DMoERM:
    """Load the model of a run's folder, a model's folder, or a hub name.

    Args:
        path: the folder or the name.
        dtype: precision of trunk and branches, such as float32; None: as saved.
        quantization: `8bit` or `4bit` to hold frozen layers in 8 or 4 bits.
        divide: divide the model over the launcher's processes, if there are several. Only process 0 returns; the others
            run its passes until it ends, and then end too.
        deterministic: prepare CUDA for deterministic matrix products.
        device: such as `cuda:1`; None: the accelerator if there is one.

    Raises:
        CheckpointError: the model does not exist.
    """
    from ..model import DMoERM
    from ..model.loading import prepare_kernels

    quieten()
    prepare_kernels(deterministic)
    options = {"dtype": dtype, "device_map": device or "auto", "quantization": quantization}
    if divide and processes() > 1:
        return _divided(model_folder(path), options)
    return DMoERM.from_pretrained(model_folder(path), **options)


def follows() -> bool:
    """Return whether this process only runs the passes of another one; see `load_model`."""
    return processes() > 1 and os.environ.get("RANK", "0") != "0"


def processes() -> int:
    """Return how many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _divided(folder: str | Path, options: dict[str, Any]) -> DMoERM:
    """Load a model and divide it over all processes; processes other than 0 follow and then exit."""
    from ..model import DMoERM
    from ..model.tensor_parallel import follow, lead, parallelize
    from ..training.processes import device, rank

    if options["quantization"] != "none":
        raise ConfigError("several processes divide a model; leave out --quantization, or start one")
    current = device()  # starts the communication
    model = DMoERM.from_pretrained(folder, dtype=options["dtype"])
    parallelize(model, current)
    if rank():
        follow(model)
        raise typer.Exit
    lead(model)
    return model
