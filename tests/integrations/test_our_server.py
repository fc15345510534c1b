"""The clients against `dmoerm serve` itself: the model's scores to the last queries, refusals, overload, a kill."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from running import served

from dmoerm.integrations import client
from dmoerm.integrations.client import AsyncClient, Client
from dmoerm.schema import Message, Query
from dmoerm.serving import ServingConfig, create_app

TALK = (Message(role="system", content="Be kind."), Message(role="user", content="你好吗？🙂"))
QUERIES = [
    *(Query(prompt=f"number {n}", responses=tuple(f"{n} times {i}" for i in range(1 + n % 7))) for n in range(40)),
    Query(prompt=TALK, responses=("很好！", "<|im_end|>\n<|im_start|>assistant\nNo."), task="objective_qa"),
    Query(prompt="many", responses=tuple("word " * (1 + n % 30) for n in range(300))),
]


@pytest.fixture(scope="module")
def url(trained_run: Any) -> Iterator[str]:
    settings = ServingConfig(api_key="sesame", queue_requests=2)
    with served(create_app(trained_run.model, settings, "tiny")) as results:
        yield results


def assert_equal(results: Any, expected: Any) -> None:
    assert [len(scores) for scores in results] == [len(scores) for scores in expected]
    for score, reference in zip(itertools.chain(*results), itertools.chain(*expected), strict=True):
        assert score.reward == pytest.approx(reference.reward, abs=1e-4)
        assert score.task == reference.task
        assert score.route == pytest.approx(reference.route, abs=1e-4)
        assert score.capabilities == pytest.approx(reference.capabilities, abs=1e-3)
        assert score.uncertainty == pytest.approx(reference.uncertainty, abs=1e-3)
        assert score.temperature == pytest.approx(reference.temperature)


def test_scores_are_the_models(url: str, trained_run: Any) -> None:
    expected = list(trained_run.model.score_queries(QUERIES))
    with Client(url, "sesame") as rm:
        assert_equal(list(rm.score_queries(QUERIES)), expected)
        weights = {"empathy": 3, "correctness": -2}
        weighted = list(trained_run.model.score_queries(QUERIES, weights=weights))
        assert_equal(list(rm.score_queries(QUERIES, weights)), weighted)
        assert rm.models() == {"tiny": trained_run.model.config.tasks}


@pytest.mark.slow
def test_a_full_queue_costs_only_the_wait(url: str, trained_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, wait_seconds = [], client.wait_seconds

    def short_wait(state: Any) -> float:
        refused.append(str(state.outcome.exception()))
        return min(wait_seconds(state), 0.1)

    monkeypatch.setattr(client, "wait_seconds", short_wait)

    async def ask() -> list[Any]:
        async with AsyncClient(url, "sesame", retries=100, concurrency=64) as rm:
            return await asyncio.gather(*[rm.score(query.prompt, query.responses, query.task) for query in QUERIES])

    assert_equal(asyncio.run(ask()), list(trained_run.model.score_queries(QUERIES)))
    assert refused
    assert all("status 503" in reason for reason in refused)
