"""A run at its beginning: the untrained model, its cache filled, its examples encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dmoerm.config import Config
from dmoerm.data.splits import load_splits
from dmoerm.data.splitting import split_by_prompt
from dmoerm.training.progress import Progress
from dmoerm.training.run import examples_of, prepare
from dmoerm.training.steps import Training


def begin(config: Config) -> Training:
    data = load_splits(config)
    run = prepare(config, data.taxonomy, Path(config.output), Progress(Console(quiet=True)))
    examples = examples_of(run, data.train)
    run.cache.fill([e.encoded for e in examples])
    held = {id(g) for g in split_by_prompt(data.train, config.data.validation_fraction, config.seed + 1)[1]}
    return Training(run, [e for e in examples if id(e.group) not in held], [e for e in examples if id(e.group) in held])


@pytest.fixture
def begun(tiny_config: Callable[..., Config]) -> Callable[..., Training]:
    """A function: changes to the settings → a run at its beginning."""

    def make(**changes: Any) -> Training:
        return begin(tiny_config(**changes))

    return make


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int, int], None]:
    """A function: a module, a number, how many → in that module, this process is one of so many."""

    def take(module: Any, rank: int, world: int) -> None:
        monkeypatch.setattr(module, "world_size", lambda: world)
        monkeypatch.setattr(module, "shard", lambda rows: rows[rank::world])

    return take
