"""Loading a model for a command: on the accelerator if there is one, and without the libraries' own chatter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..io.paths import model_folder

if TYPE_CHECKING:
    from ..model import DMoERM


def quieten() -> None:
    """Stops transformers' messages and progress bars; the command shows its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_model(path: str) -> DMoERM:
    """The model of a run's folder, a model's folder, or a hub name. Raises `ArtefactError` if there is none."""
    import torch

    from ..model import DMoERM

    quieten()
    model = DMoERM.from_pretrained(model_folder(path))
    return model.to("cuda") if torch.cuda.is_available() else model  # pyright: ignore[reportArgumentType, reportReturnType]
