"""What an inner model reports: a calibrated reward, standardised capabilities, the experts' disagreement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmoerm.chat.encoding import Encoded
from dmoerm.model.batching import pack_ids
from dmoerm.model.inner import Calibration, InnerModel

QUERIES = [Encoded([1, 4, 5, 9], [[6, 2], [7, 8, 11, 2], [12, 2]])]


@pytest.fixture(params=[2, 0], ids=["lora", "heads"])
def parts(request: pytest.FixtureRequest, tiny_model: Callable[..., Any]) -> tuple[Any, InnerModel]:
    model = tiny_model(phase2={"lora": {"rank": request.param}})
    return model.hidden(pack_ids(QUERIES)), model.inner("chitchat")


@torch.no_grad()
def test_the_report_by_hand(parts: tuple[Any, InnerModel]) -> None:
    hidden, inner = parts
    general = torch.tensor([0.3, -0.2, 1.0])
    output = inner(hidden, general)
    base = inner.base.embed(hidden)
    z = inner.experts.embed(hidden, base)
    scores = torch.stack([head(vector) for head, vector in zip(inner.experts.heads, z, strict=True)], 1)
    embeddings = torch.cat(list(z), 1) if inner.experts.branch is not None else base
    vectors = torch.cat([embeddings, scores, inner.base.head(base)[:, None], general[:, None]], 1)
    capabilities = (scores - inner.standardise.mean) / inner.standardise.scale
    raw = inner.aggregator(vectors)
    calibration = inner.calibration
    torch.testing.assert_close(output.reward, (raw - calibration.centre) / calibration.scale)
    torch.testing.assert_close(output.capabilities, capabilities)
    torch.testing.assert_close(output.uncertainty, capabilities.std(1, correction=0))
    torch.testing.assert_close(output.per_task, inner.base.head(base))


@torch.no_grad()
def test_a_base_embedding_already_computed_gives_the_same(parts: tuple[Any, InnerModel]) -> None:
    hidden, inner = parts
    general = torch.zeros(3)
    for one, other in zip(inner(hidden, general), inner(hidden, general, inner.base.embed(hidden)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("aggregator", "rank", "expected"),
    [("embeddings", 2, False), ("scores", 2, True), ("both", 2, True), ("embeddings", 0, True)],
)
def test_the_papers_reward_does_not_read_the_plain_branch(
    tiny_model: Callable[..., Any], aggregator: str, rank: int, expected: bool
) -> None:
    model = tiny_model(phase2={"lora": {"rank": rank}}, phase3={"inputs": aggregator})
    hidden, inner = model.hidden(pack_ids(QUERIES)), model.inner("chitchat")
    assert inner.reads_base == expected
    rewards = [inner(hidden, general * torch.ones(3), general * torch.ones(3, 64)).reward for general in (0.0, 1.0)]
    assert torch.equal(*rewards) != expected


@torch.no_grad()
def test_experts_alone_give_the_papers_report(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(phase3={"inputs": "embeddings"})
    hidden, inner = model.hidden(pack_ids(QUERIES)), model.inner("chitchat")
    alone, whole = inner.forward_experts(hidden), inner(hidden, torch.tensor([0.3, -0.2, 1.0]))
    for name in ("reward", "capabilities", "uncertainty"):
        torch.testing.assert_close(getattr(alone, name), getattr(whole, name))
    assert alone.per_task.tolist() == [0, 0, 0]


@torch.no_grad()
def test_experts_that_agree_leave_no_uncertainty(parts: tuple[Any, InnerModel]) -> None:
    _, inner = parts
    width = sum(inner.aggregator.split)
    vectors = torch.randn(4, width)
    vectors[:, width - 4 : width - 2] = inner.standardise.mean + inner.standardise.scale * torch.randn(4, 1)
    torch.testing.assert_close(inner.conclude(vectors).uncertainty, torch.zeros(4), atol=1e-6, rtol=0)


def test_a_new_calibration_changes_nothing() -> None:
    rewards = torch.randn(5)
    assert torch.equal(Calibration()(rewards), rewards)
