"""A run on a frozen tiny backbone whose trained models all tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny import make_exact_config

from dmoerm.config import Config
from dmoerm.experiments import costs

CONDITIONS = {"clean": {}, "noisy": {"data.flip_scores": 0.25, "data.flip_capabilities": 0.15}}
MEMBERS = 2


@pytest.fixture(scope="session", autouse=True)
def timed_once() -> Iterator[None]:
    """Time the scoring of each method once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "_REPEATS", 1)
        yield


@pytest.fixture(scope="session")
def frozen_config(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The settings of the shared runs: comparisons and best-of-n in the same folder train each model once."""
    return make_exact_config(tiny_backbone, tmp_path_factory.mktemp("experiments"))
