"""A run at its beginning: the untrained model, its cache filled, its examples encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dmoerm.config import Config
from dmoerm.data.splits import held_out, load_splits
from dmoerm.training.run import prepare
from dmoerm.training.steps import Progress, Training


def begin(config: Config) -> Training:
    data = load_splits(config)
    run = prepare(config, data.taxonomy, Path(config.output), Progress(Console(quiet=True)))
    examples = run.examples(data.train)
    run.cache.fill([e.encoded for e in examples])
    held = held_out(data.train, config.data.validation_fraction, config.seed + 1)
    train, validation = ([e for e, each in zip(examples, held, strict=True) if each is part] for part in (False, True))
    return Training(run, train, validation)


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
