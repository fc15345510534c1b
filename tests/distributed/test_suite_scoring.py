"""Best-of-n on a cluster is best-of-n in one process: the same document, and what is scored is not scored again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import TINY_TASKS, make_tiny_config

from dmoerm.config import Config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.experiment_results import BestOfNResults
from dmoerm.experiments import method_suite as here
from dmoerm.experiments.best_of_n import measure_best_of_n
from dmoerm.experiments.samples import Samples, from_testbed, unseen_prompts

from .conftest import Nodes

pytest.importorskip("ray", reason="ray is not installed; run: make install")
pytestmark = pytest.mark.slow
NOISY = {"noisy": {"data.flip_scores": 0.25, "data.flip_capabilities": 0.15}}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As Ray gives a worker of one processor: last digits hang on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("changes", [{"base": "frozen", "phase2": {"lora": {"rank": 0}}}, {}])
def test_best_of_n_is_the_same_on_a_cluster(
    nodes: Nodes, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    from dmoerm.distributed import suite_scoring as there
    from dmoerm.distributed.training import on_ray

    for module in (here, there):  # several shards of few samples
        monkeypatch.setattr(module, "SHARD_QUERIES", 2)
    configs = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        configs.append(make_tiny_config(tiny_backbone, tmp_path / name, **changes))
    items = [item for item in unseen_prompts(1, load_splits(configs[0]).train) if item.task in TINY_TASKS]
    samples = from_testbed(items, 400)
    assert min(len(one.chunks()) for one in samples) > 2

    expected = measured(configs[0], samples)
    found = measured(configs[1], samples, engine=on_ray, scoring=there.score_on_cluster)
    assert found.model_dump(exclude={"config"}) == expected.model_dump(exclude={"config"})
    parts = {file: file.stat().st_mtime_ns for file in (tmp_path / "there").rglob("part-*.parquet")}
    assert len(parts) > 3
    assert measured(configs[1], samples, engine=on_ray, scoring=there.score_on_cluster) == found
    assert {file: file.stat().st_mtime_ns for file in parts} == parts


def measured(config: Config, samples: list[Samples], **how: Any) -> BestOfNResults:
    given = {0: samples}
    return measure_best_of_n(config, given, NOISY, 2, console=Console(quiet=True), **how)
