"""The output of a task model: a calibrated reward with its standard deviation, and normalized capabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_exact_config, make_model

from dmoerm.chat.encoding import Encoded
from dmoerm.model.batching import pack_ids
from dmoerm.model.task_model import Calibration, TaskModel

QUERIES = [Encoded([1, 4, 5, 9], [[6, 2], [7, 8, 11, 2], [12, 2]])]


@pytest.fixture(params=[2, 0], ids=["lora", "heads"])
def parts(request: pytest.FixtureRequest, tiny_model: Callable[..., Any]) -> tuple[Any, TaskModel]:
    model = tiny_model(phase2={"lora": {"rank": request.param}})
    return model.hidden(pack_ids(QUERIES)), model.task_model("chitchat")


@torch.no_grad()
def test_the_output_by_hand(parts: tuple[Any, TaskModel]) -> None:
    hidden, task_model = parts
    general = torch.tensor([0.3, -0.2, 1.0])
    output = task_model(hidden, general)
    base = task_model.base.embed(hidden)
    z = task_model.experts.embed(hidden, base)
    scores = torch.stack([head(vector) for head, vector in zip(task_model.experts.heads, z, strict=True)], 1)
    embeddings = torch.cat(list(z), 1) if task_model.experts.branch is not None else base
    vectors = torch.cat([embeddings, scores, task_model.base.head(base)[:, None], general[:, None]], 1)
    capabilities = (scores - task_model.normalizer.mean) / task_model.normalizer.scale
    raw = task_model.aggregator(vectors)
    calibration = task_model.calibration
    torch.testing.assert_close(output.reward, (raw - calibration.center) / calibration.scale)
    torch.testing.assert_close(output.capabilities, capabilities)
    normalizer, posterior = task_model.base.head.normalizer, task_model.posterior
    x = (base - normalizer.mean) / normalizer.scale
    covariance = torch.diag(posterior.rest) - posterior.basis @ posterior.basis.T
    torch.testing.assert_close(output.uncertainty, torch.einsum("ni,ij,nj->n", x, covariance, x).sqrt())
    torch.testing.assert_close(output.per_task, task_model.base.head(base))


@torch.no_grad()
def test_the_head_on_all_labels_gives_the_last_score(tiny_backbone: str, tmp_path: Path) -> None:
    model = make_model(make_exact_config(tiny_backbone, tmp_path))
    hidden, task_model = model.hidden(pack_ids(QUERIES)), model.task_model("chitchat")
    general = torch.tensor([0.3, -0.2, 1.0])
    base = task_model.base.embed(hidden)
    scores = task_model.experts.score(task_model.experts.embed(hidden, base))
    last = torch.stack([task_model.base.head(base), general, task_model.all_labels(base)], 1)
    raw = task_model.aggregator(torch.cat([scores, last], 1))
    torch.testing.assert_close(task_model(hidden, general).reward, task_model.calibration(raw))


@torch.no_grad()
def test_a_base_embedding_already_computed_gives_the_same(parts: tuple[Any, TaskModel]) -> None:
    hidden, task_model = parts
    general = torch.zeros(3)
    for computed, given in zip(
        task_model(hidden, general), task_model(hidden, general, task_model.base.embed(hidden)), strict=True
    ):
        assert torch.equal(computed, given)


@torch.no_grad()
def test_without_a_posterior_there_is_no_uncertainty(parts: tuple[Any, TaskModel]) -> None:
    hidden, task_model = parts
    task_model.posterior.rest.zero_()
    task_model.posterior.basis.zero_()
    assert task_model(hidden, torch.zeros(3)).uncertainty.isnan().all()


@pytest.mark.parametrize(
    ("aggregator", "rank", "expected"),
    [("embeddings", 2, False), ("scores", 2, True), ("both", 2, True), ("embeddings", 0, True)],
)
def test_the_papers_reward_does_not_read_the_plain_branch(
    tiny_model: Callable[..., Any], aggregator: str, rank: int, expected: bool
) -> None:
    model = tiny_model(phase2={"lora": {"rank": rank}}, phase3={"inputs": aggregator})
    hidden, task_model = model.hidden(pack_ids(QUERIES)), model.task_model("chitchat")
    assert task_model.reads_base == expected
    rewards = [
        task_model(hidden, general * torch.ones(3), general * torch.ones(3, 64)).reward for general in (0.0, 1.0)
    ]
    assert torch.equal(*rewards) != expected


@torch.no_grad()
def test_experts_alone_give_the_papers_output(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(phase3={"inputs": "embeddings"})
    hidden, task_model = model.hidden(pack_ids(QUERIES)), model.task_model("chitchat")
    alone, whole = task_model.forward_experts(hidden), task_model(hidden, torch.tensor([0.3, -0.2, 1.0]))
    for name in ("reward", "capabilities"):
        torch.testing.assert_close(getattr(alone, name), getattr(whole, name))
    assert alone.uncertainty.isnan().all()  # the posterior is on the plain branch's embeddings
    assert alone.per_task.tolist() == [0, 0, 0]


def test_a_new_calibration_changes_nothing() -> None:
    rewards = torch.randn(5)
    assert torch.equal(Calibration()(rewards), rewards)
