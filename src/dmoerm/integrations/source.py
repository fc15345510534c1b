"""The source of a trainer's rewards: a model in this process, or a reward server."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dmoerm.client import Client
from dmoerm.errors import ConfigError
from dmoerm.io.paths import model_folder
from dmoerm.scores import Scorer

if TYPE_CHECKING:
    from dmoerm.model import DMoERM

MODEL_VARIABLE = "DMOERM_MODEL"
Source = str | Path | Scorer
_OPEN_LOCK = threading.Lock()


def open_scorer(source: Source | None = None) -> Scorer:
    """Open a scorer. Each source is opened once per process, also if several threads open it.

    Args:
        source: a server's URL; a run folder, a model folder or a hub name, whose model is loaded onto the GPU if there
            is one; a `DMoERM` or a `Client`, which is returned; None: the environment variable DMOERM_MODEL.

    Raises:
        ConfigError: DMOERM_MODEL is not set.
        CheckpointError: the model does not exist.
    """
    source = source or os.environ.get(MODEL_VARIABLE)
    if not source:
        raise ConfigError(
            f"{MODEL_VARIABLE} is not set; set it to the folder of a trained model, such as runs/mine/model, "
            "or to the URL of a reward server"
        )
    if not isinstance(source, str | Path):
        return source
    with _OPEN_LOCK:
        return _open(str(source))


@functools.cache
def _open(source: str) -> Scorer:
    return Client(source) if source.startswith(("http://", "https://")) else _load(source)


def _load(path: str) -> Scorer:
    from dmoerm.model import DMoERM

    return DMoERM.from_pretrained(model_folder(path), device_map="auto")


@functools.cache
def tasks_of(scorer: Scorer) -> Mapping[str, Sequence[str]]:
    """Return the scorer's tasks with their capabilities; a server gets one request per process.

    Raises:
        ConfigError: the server has no model with the client's model name.
    """
    return scorer.tasks() if isinstance(scorer, Client) else cast("DMoERM", scorer).config.tasks
