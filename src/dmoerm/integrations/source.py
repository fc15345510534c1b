"""Where a trainer's rewards come from: a model in this process, or a server that has one."""

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
_OPENING = threading.Lock()


def open_scorer(source: Source | None = None) -> Scorer:
    """What scores queries; opened once for each source, whichever threads ask for it.

    Args:
        source: a server's URL; a run's or a model's folder, or a hub name; a `DMoERM` or a `Client` as it is; None:
            what the environment variable DMOERM_MODEL names. A model goes to the accelerator if there is one.

    Raises:
        ConfigError: DMOERM_MODEL is not set.
        CheckpointError: there is no model of that name.
    """
    source = source or os.environ.get(MODEL_VARIABLE)
    if not source:
        raise ConfigError(
            f"{MODEL_VARIABLE} is not set; set it to the folder of a trained model, such as runs/mine/model, "
            "or to the URL of a reward server"
        )
    if not isinstance(source, str | Path):
        return source
    with _OPENING:
        return _open(str(source))


@functools.cache
def _open(source: str) -> Scorer:
    return Client(source) if source.startswith(("http://", "https://")) else _load(source)


def _load(path: str) -> Scorer:
    from dmoerm.model import DMoERM

    return DMoERM.from_pretrained(model_folder(path), device_map="auto")


@functools.cache
def tasks_of(scorer: Scorer) -> Mapping[str, Sequence[str]]:
    """Task → its capabilities; a server is asked once. Raises `ConfigError` where it has no model of that name."""
    if not isinstance(scorer, Client):
        return cast("DMoERM", scorer).config.tasks
    models = scorer.models()
    if scorer.model not in (None, *models):
        known = ", ".join(models)
        raise ConfigError(f"{scorer.url} has no model {scorer.model!r}; use one of {known}, or none for its first")
    return models[scorer.model or next(iter(models))]
