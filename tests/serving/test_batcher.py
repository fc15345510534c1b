"""The queue before the model: what shares a pass changes no score, and nobody waits for what nobody wants."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
import time

import httpx2
import pytest
import torch

from dmoerm.chat.encoding import Encoded
from dmoerm.errors import DataError, ServerError
from dmoerm.model.router import Known
from dmoerm.schema import Query
from dmoerm.serving import ServingConfig
from dmoerm.serving.batcher import Batcher, QueuedPart, QueuedRequest, WaitingLine
from dmoerm.serving.monitoring import REQUEST_ID, Metrics
from dmoerm.serving.settings import Refusal

QUERIES = [Query(prompt=f"What about {i}?", responses=tuple("So. " * (j + i) for j in range(1, 4))) for i in range(12)]


@pytest.fixture
def batcher(trained_run):
    def make(**settings):
        return Batcher(trained_run.model, ServingConfig(**settings), Metrics())

    return make


def scored(batcher, *requests):
    """The scores of requests that are all there before the first pass; an error in place of what raised it."""

    async def all_at_once():
        tasks = [asyncio.create_task(batcher.score(each)) for each in requests]
        while sum(len(line.waiting()) for line in batcher.lines.values()) + sum(task.done() for task in tasks) < len(
            tasks
        ):
            await asyncio.sleep(0.001)
        work = asyncio.create_task(batcher.run())
        results = await asyncio.gather(*tasks, return_exceptions=True)
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


def test_a_slow_engine_shares_a_long_prompt_too(batcher):
    """A pass is expected to take `pass_seconds` at most; one that the prompt alone exceeds still has all responses."""
    queue = batcher(batch_wait=0, queue_seconds=1e9, pass_seconds=2)
    queue.throughput.add(100_000, 2000)  # 50 tokens a second: a pass of several requests has 100
    singles = [Query(prompt="What about this? " * 30, responses=(f"So {i}.",)) for i in range(8)]
    scored(queue, *([each] for each in singles), [QUERIES[1]])
    count = queue.metrics.registry.get_sample_value("dmoerm_batch_tokens_count")
    assert count == 2, "the responses to the long prompt, and the other request"


def test_all_responses_to_a_prompt_are_scored_as_one_task(batcher, trained_run, monkeypatch):
    """Parts of a query run in passes of their own; a route close to a tie could change between them."""
    queue = batcher(batch_tokens=1, batch_wait=0)
    score, tasks, passes = queue.model.score_encoded, trained_run.model.router.tasks, []

    def near_a_tie(encoded, given):
        passes.append(given)
        first = 0.6 if len(passes) % 2 == 0 else 0.4
        return score(encoded, [each or Known(None, (first, 1 - first)) for each in given])

    query = QUERIES[0].model_copy(update={"responses": tuple(f"{i} " + "So. " * 50 for i in range(4))})
    monkeypatch.setattr(queue.model, "score_encoded", near_a_tie)
    ((row,), _), *_ = scored(queue, [query])
    monkeypatch.undo()
    (expected,) = trained_run.model.score_queries([query.model_copy(update={"task": tasks[1]})])
    assert [s.task for s in row] == [tasks[1]] * 4
    assert [s.reward for s in row] == pytest.approx([s.reward for s in expected], abs=1e-4)
    assert (passes[0], len(passes)) == ([None], 4), "the parts run in passes of their own"
    assert all(isinstance(each, Known) for given in passes[1:] for each in given), "the first route holds for all"
    assert [list(s.route.values()) for s in row] == [[0.4, 0.6]] * 4
    assert queue.requests == queue.waiting_tokens == 0


@pytest.mark.parametrize(("arrival", "first"), [(50.0, "short"), (100.0, "long")])
def test_a_short_text_goes_ahead_of_long_ones_that_have_not_waited_for_long(arrival, first):
    """At 100 tokens a second, a pass of a long text takes 10 s: it waits for texts that arrive in the next 80 s."""
    line = WaitingLine()

    async def passes():
        for turn, tokens in [*((float(turn), 1000) for turn in range(8)), (arrival, 10)]:
            request = QueuedRequest([QUERIES[0]])
            request.turn, request.id = turn, "short" if tokens == 10 else "long"
            line.requests.append(request)
            line.add(request, [QueuedPart(0, 0, Encoded([int(turn)] * (tokens - 1), [[1]]), None)])
        return [[request.id for request, _ in line.take(1500, 8192, rate=100.0)] for _ in range(9)]

    order = asyncio.run(passes())
    assert order[0] == [first]
    assert sorted(name for taken in order for name in taken) == ["long"] * 8 + ["short"]
    assert line.tokens == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (None, "not finite"),
        (RuntimeError("a secret text"), "the model failed: RuntimeError"),
        (torch.OutOfMemoryError("CUDA out of memory. a secret text"), "start the server with a lower --batch-tokens"),
    ],
)
def test_one_bad_text_fails_alone(batcher, monkeypatch, caplog, error, message):
    queue = batcher()
    score = queue.model.score_encoded

    def fragile(encoded, tasks):
        bad = [len(each.responses) == 2 for each in encoded]
        if error is not None and any(bad):
            raise error
        rows = zip(bad, score(encoded, tasks), strict=True)
        return [[dataclasses.replace(s, reward=float("nan")) if wrong else s for s in row] for wrong, row in rows]

    monkeypatch.setattr(queue.model, "score_encoded", fragile)
    token = REQUEST_ID.set("the caller")
    good, failed, other = scored(
        queue, QUERIES[:2], [QUERIES[5].model_copy(update={"responses": ("a", "b")})], QUERIES[3:4]
    )
    REQUEST_ID.reset(token)
    assert error is None or "the caller" in caplog.records[-1].requests
    assert isinstance(failed, ServerError)
    assert message in str(failed)
    assert "secret" not in str(failed) + caplog.text
    assert (len(good[0]), len(other[0])) == (2, 1)


def test_requests_end_with_the_queue(batcher, monkeypatch):
    """An unexpected error between two passes: what waits, what is encoded at that time, and later requests fail."""
    queue = batcher()
    monkeypatch.setattr(queue, "_next_pass", lambda: 1 / 0)

    async def ask():
        waiting = [asyncio.create_task(queue.score([query])) for query in QUERIES]
        with pytest.raises(ZeroDivisionError):
            await queue.run()
        answers = await asyncio.gather(*waiting, queue.score(QUERIES[:1]), return_exceptions=True)
        return {str(answer) for answer in answers}

    assert asyncio.run(asyncio.wait_for(ask(), 20)) == {"the server cannot score any more; see its log"}
    assert queue.requests == queue.waiting_tokens == 0


def test_responses_with_the_whole_and_with_a_cut_prompt_are_routed_as_if_each_were_alone(tiny_model):
    """The whole prompt ends as another task's do. What is served does not depend on the responses' order."""
    model = tiny_model(encoding={"max_length": 60, "truncation": "keep_beginning"})
    prompts = ["why " * words for words in range(60, 0, -1)]
    prompt = next(p for p in prompts if not model.encoder.encode(Query(prompt=p, responses=("No.",))).truncated_at)
    responses = ("No.", "because " * 60, "Yes.")
    first = model.encoder.encode(Query(prompt=prompt, responses=responses), one_prompt=False)
    route, whole = model.route, len(first.prompt)

    def by_length(ids, hidden):
        rows = [float(len(prompt) == whole) for prompt, _ in ids.split()]
        return torch.tensor([[0.1 + 0.8 * row, 0.9 - 0.8 * row] for row in rows]).to(route(ids, hidden))

    model.route = by_length
    expected = [model.score(prompt, [text])[0] for text in responses]
    assert [score.task for score in expected] == ["chitchat", "objective_qa", "chitchat"]
    for order in ((0, 1, 2), (1, 0, 2)):
        query = Query(prompt=prompt, responses=tuple(responses[i] for i in order))
        (((row,), _),) = scored(Batcher(model, ServingConfig(), Metrics()), [query])
        for i, score in zip(order, row, strict=True):
            assert (score.task, score.truncated) == (expected[i].task, expected[i].truncated)
            assert score.reward == pytest.approx(expected[i].reward, abs=1e-5)


def test_bytes_that_wait_to_be_tokenized_are_bounded(batcher, monkeypatch):
    """While large texts are tokenized, further ones are refused, those of /tokenize too; then there is space again."""
    queue, go = batcher(queue_bytes=10_000), threading.Event()
    encode = queue.model.encoder.encode_all
    monkeypatch.setattr(queue.model.encoder, "encode_all", lambda *arguments: go.wait(20) and encode(*arguments))
    large = Query(prompt="Hi!", responses=("é" * 3_000,))

    async def flood():
        calls = [asyncio.create_task(queue.score([large])) for _ in range(5)]
        await asyncio.sleep(0)
        assert 10_000 <= queue.lines["bulk"].bytes < 16_000
        assert {call.exception().headers["Retry-After"] for call in calls[2:]} == {"1"}
        with pytest.raises(Refusal, match="bytes to tokenize"):
            await queue.tokens("Hi!", True)
        go.set()
        errors = await asyncio.gather(*calls[:2], return_exceptions=True)
        assert {type(error) for error in errors} == {DataError}, "they are too long"
        assert queue.lines["bulk"].bytes == 0
        return await queue.tokens("Hi!", True)

    assert asyncio.run(flood()) == queue.model.encoder.tokens("Hi!")


@pytest.mark.parametrize("seconds", [1, 3])
def test_a_burst_is_refused_beyond_the_expected_seconds(batcher, seconds):
    """At 100 tokens a second, the requests that enter fill the time and no more, though all arrive at once."""
    queue = batcher(queue_seconds=seconds)
    queue.throughput.add(100, 1.0)

    async def burst():
        calls = [asyncio.create_task(queue.score([query])) for query in QUERIES * 2]
        await asyncio.wait(calls, timeout=0.5)
        waiting = [call for call in calls if not call.done()]
        assert len(waiting) == queue.requests > 0
        assert 100 * seconds - 60 < queue.waiting_tokens <= 100 * seconds
        for call in waiting:
            call.cancel()
        await asyncio.wait(waiting)
        return [call.exception() for call in calls if call not in waiting]

    refused = asyncio.run(burst())
    assert {type(error) for error in refused} == {Refusal}
    assert {int(error.headers["Retry-After"]) for error in refused} <= set(range(1, seconds + 1))
    assert len(scored(queue, QUERIES)[0][0]) == len(QUERIES)  # alone, even a request that takes longer is scored


def test_interactive_requests_come_first(batcher):
    queue = batcher(batch_tokens=60, batch_wait=0, queue_requests=6)
    ended = []

    async def ask(name, priority):
        await queue.score(QUERIES[:1], priority)
        ended.append(name)

    async def all_at_once():
        bulk = [asyncio.create_task(ask("bulk", "bulk")) for _ in range(6)]
        await asyncio.sleep(0.05)
        page = asyncio.create_task(ask("page", "interactive"))  # the line of bulk requests is full
        while not queue.lines["interactive"].tokens:
            await asyncio.sleep(0.001)
        work = asyncio.create_task(queue.run())
        await asyncio.gather(page, *bulk)
        work.cancel()

    asyncio.run(all_at_once())
    assert ended == ["page", *["bulk"] * 6]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("u=0", "interactive"),
        ("i, u=2", "interactive"),
        ("u=3", "bulk"),
        ("", "bulk"),
        ("u=12", "bulk"),
        ("xu=1", "bulk"),
    ],
)
def test_the_header_sets_the_priority(served_app, served_url, monkeypatch, header, expected):
    queue = served_app.state.service.batcher
    score, seen = queue.score, []

    async def noting(queries, priority):
        seen.append(priority)
        return await score(queries, priority)

    monkeypatch.setattr(queue, "score", noting)
    body = {"items": [{"prompt": "Hi!", "responses": ["Hello."]}]}
    assert httpx2.post(f"{served_url}/v1/score", json=body, headers={"Priority": header}).status_code == 200
    assert seen == [expected]


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
        for path in ("health", "ready", "metrics"):  # they do not wait for the pass
            assert httpx2.get(f"{served_url}/{path}", timeout=10).status_code == 200
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{served_url}/v1/score", json=body, timeout=0.3)
        deadline = time.monotonic() + 20
        while service.batcher.requests > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (service.batcher.requests, service.batcher.waiting_tokens) == (1, 0)
        assert "dmoerm_client_left_total 1.0" in service.metrics.text().decode()
        go.set()
        assert stays.result().status_code == 200
