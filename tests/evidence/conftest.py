"""Runs on a tiny backbone, and a tiny policy, which the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console
from tiny import make_exact_config, make_tiny_config, train_quietly
from tiny_policy import TINY_POLICY

from dmoerm.config import Config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.methods import MethodContext, TrainedMethod
from dmoerm.evaluation.scored_groups import score_groups
from dmoerm.schema import Query
from dmoerm.training.run import split_examples
from evidence import methods  # noqa: F401, which registers them
from evidence.rl import RLPrompt, draw_prompts, make_policy


@pytest.fixture(scope="session")
def trained() -> Callable[[Config], MethodContext]:
    """Train a run, and return what its baselines are trained with."""

    def context(config: Config) -> MethodContext:
        run, data = train_quietly(config), load_splits(config)
        train, _ = split_examples(run, data.train)
        return MethodContext(run, data, train, train[:4], Console(quiet=True))  # known prompts, on which any fit gains

    return context


@pytest.fixture(scope="session")
def exact(trained: Any, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> MethodContext:
    """As in the recipe `frozen`: all heads are fitted exactly to the same embeddings."""
    return trained(make_exact_config(tiny_backbone, tmp_path_factory.mktemp("exact")))


@pytest.fixture(scope="session")
def tuned(trained: Any, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> MethodContext:
    """Fully trained branches on a bfloat16 backbone; no head has a penalty, so none has a posterior."""
    folder = tmp_path_factory.mktemp("tuned")
    return trained(make_tiny_config(tiny_backbone, folder, backbone={"dtype": "bfloat16"}))


@pytest.fixture(scope="session")
def members() -> Callable[[MethodContext, TrainedMethod | None, Query], Any]:
    """Return the rewards (k, N) of a method's members for one query."""

    def score(context: MethodContext, method: TrainedMethod | None, query: Query) -> Any:
        assert method is not None
        assert method.score is not None
        scorers = {"x": method.score}
        (scored,) = score_groups(context.run.model, [query], console=Console(quiet=True), scorers=scorers)
        return scored.members["x"]

    return score


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
