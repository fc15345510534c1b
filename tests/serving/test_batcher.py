"""The queue before the model: what shares a pass changes no score, and nobody waits for what nobody wants."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import httpx2
import pytest

from dmoerm.errors import DataError, ServerError
from dmoerm.schema import Query
from dmoerm.serving import ServingConfig
from dmoerm.serving.batcher import Batcher, Overloaded
from dmoerm.serving.metrics import Metrics

QUERIES = [Query(prompt=f"What about {i}?", responses=tuple("So. " * (j + i) for j in range(1, 4))) for i in range(12)]


@pytest.fixture
def batcher(trained_run):
    def make(**settings):
        return Batcher(trained_run.model, ServingConfig(**settings), Metrics())

    return make


def scored(batcher, *requests):
    """The scores of requests that are there at once; an error in place of what raised it."""

    async def all_at_once():
        work = asyncio.create_task(batcher.run())
        results = await asyncio.gather(*(batcher.score(each) for each in requests), return_exceptions=True)
        work.cancel()
        return results

    return asyncio.run(all_at_once())


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_what_shares_a_pass_changes_no_score(batcher, trained_run, batch_tokens):
    queue = batcher(batch_tokens=batch_tokens)
    results = scored(queue, QUERIES[:1], QUERIES[1:7], QUERIES[7:])
    expected = list(trained_run.model.score_queries(QUERIES))
    rows = [row for scores, _ in results for row in scores]
    for row, scores in zip(rows, expected, strict=True):
        assert [s.reward for s in row] == pytest.approx([s.reward for s in scores], abs=1e-4)
    count = queue.metrics.registry.get_sample_value("dmoerm_batch_tokens_count")
    assert 1 < count <= (4 if batch_tokens == 10_000 else 100)


@pytest.mark.parametrize("deterministic", [False, True])
def test_requests_with_the_same_prompt_share_it(batcher, trained_run, deterministic):
    """Eight responses sent singly, among other prompts, run as if they had been sent together."""
    responses = ["So. " * (i % 3 + 1) if i != 5 else "" for i in range(8)]
    singles = [Query(prompt=QUERIES[0].prompt, responses=(text,)) for text in responses]
    forced = singles[0].model_copy(update={"task": "objective_qa"})
    requests = [each for pair in zip(singles, QUERIES[1:9], strict=True) for each in pair]
    queue = batcher(deterministic=deterministic)
    *results, (other, _) = scored(queue, *([each] for each in requests), [forced])
    (expected,) = trained_run.model.score_queries([singles[0].model_copy(update={"responses": tuple(responses)})])
    assert [rows[0][0].reward for rows, _ in results[::2]] == pytest.approx([s.reward for s in expected], abs=1e-4)
    assert other[0][0].task == "objective_qa"
    if not deterministic:
        encode = trained_run.model.encoder.encode
        each = [encode(query) for query in [*requests, forced]]
        shared = 7 * len(encode(singles[0]).prompt)
        run = queue.metrics.registry.get_sample_value("dmoerm_batch_tokens_sum")
        assert run == sum(one.tokens for one in each) - shared


def test_a_large_request_delays_a_small_one_by_little(batcher):
    queue = batcher(batch_tokens=60, batch_wait=0)
    ended = []

    async def ask(name, queries):
        await queue.score(queries)
        ended.append(name)

    async def all_at_once():
        large = asyncio.create_task(ask("large", QUERIES))
        await asyncio.sleep(0.01)
        small = asyncio.create_task(ask("small", QUERIES[:1]))
        work = asyncio.create_task(queue.run())
        await asyncio.gather(large, small)
        work.cancel()

    asyncio.run(all_at_once())
    assert ended == ["small", "large"]


def test_a_client_that_leaves_frees_its_place(batcher):
    queue = batcher(batch_tokens=40, batch_wait=0)

    async def leave():
        left = asyncio.create_task(queue.score(QUERIES))
        while not queue._waiting_tokens:
            await asyncio.sleep(0.001)
        left.cancel()
        await asyncio.wait([left])
        assert queue._waiting_tokens == queue._requests == 0
        work = asyncio.create_task(queue.run())
        scores, _ = await queue.score(QUERIES[:1])
        work.cancel()
        return scores

    assert len(asyncio.run(leave())[0]) == 3
    assert (
        queue.metrics.batch_tokens.collect()[0].samples[-2].value <= 200
    )  # the sum: nothing of what was left was scored


def test_one_bad_text_fails_alone(batcher, monkeypatch):
    queue = batcher()
    score = queue.model.score_encoded

    def fragile(encoded, tasks):
        if any(len(each.responses) == 2 for each in encoded):
            raise RuntimeError("out of memory: a secret text")
        return score(encoded, tasks)

    monkeypatch.setattr(queue.model, "score_encoded", fragile)
    bad = QUERIES[5].model_copy(update={"responses": ("a", "b")})
    good, failed, other = scored(queue, QUERIES[:2], [bad], QUERIES[3:4])
    assert isinstance(failed, ServerError)
    assert "secret" not in str(failed)
    assert len(good[0]) == 2
    assert len(other[0]) == 1


def test_a_reward_that_is_no_number_is_an_error(batcher, monkeypatch):
    import dataclasses

    queue = batcher()
    score = queue.model.score_encoded

    def broken(encoded, tasks):
        return [[dataclasses.replace(s, reward=float("nan")) for s in row] for row in score(encoded, tasks)]

    monkeypatch.setattr(queue.model, "score_encoded", broken)
    (failed,) = scored(queue, QUERIES[:1])
    assert isinstance(failed, ServerError)
    assert "not finite" in str(failed)


def test_limits_are_told_before_anything_is_scored(batcher):
    long, unknown = scored(batcher(max_request_tokens=50), QUERIES, [QUERIES[0].model_copy(update={"task": "x"})])
    assert isinstance(long, DataError)
    assert isinstance(unknown, DataError)
    queue = batcher(queue_requests=1)
    _, refused = scored(queue, QUERIES[:1], QUERIES[:1])
    assert isinstance(refused, Overloaded)
    assert refused.retry_after >= 1


def test_a_client_that_hangs_up_is_noticed(served_app, served_url, monkeypatch):
    """Over real sockets: a request in the queue is gone once its connection is."""
    service = served_app.state.service
    started, go = threading.Event(), threading.Event()
    model = service.batcher.model
    score = model.score_encoded

    def held(encoded, tasks):
        started.set()
        assert go.wait(20)
        return score(encoded, tasks)

    monkeypatch.setattr(model, "score_encoded", held)
    body = {"items": [{"prompt": "Hi!", "responses": ["Hello."]}]}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stays = pool.submit(httpx2.post, f"{served_url}/v1/score", json=body, timeout=30)
        assert started.wait(20)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{served_url}/v1/score", json=body, timeout=0.3)
        deadline = threading.Event()
        for _ in range(200):
            if service.batcher._requests == 1:
                break
            deadline.wait(0.02)
        assert service.batcher._requests == 1
        assert "dmoerm_client_left_total 1.0" in service.metrics.text().decode()
        go.set()
        assert stays.result().status_code == 200
