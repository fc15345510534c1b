"""Runs on a frozen tiny backbone, and a tiny policy, which the tests of this folder share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock
from tiny import make_exact_config
from tiny_policy import TINY_POLICY

from dmoerm.config import Config
from evidence import methods  # noqa: F401, which registers them
from evidence.rl import RLPrompt, draw_prompts, make_policy


@pytest.fixture(scope="session")
def frozen_config(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The settings of the shared runs: comparisons and best-of-n in the same folder train each model once."""
    return make_exact_config(tiny_backbone, tmp_path_factory.mktemp("experiments"))


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy of about 50,000 parameters, fine-tuned once for all workers; do not change it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers of a test run share
    with FileLock(folder / "policies.lock"):
        return make_policy(TINY_POLICY, folder / "policies")


@pytest.fixture(scope="session")
def asked() -> list[RLPrompt]:
    """Forty prompts."""
    return draw_prompts(8)
