"""The clients of a reward server: the model's `score` over HTTP, and which errors are retried."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from reward_server import TASKS, respond, score_by_rule

import dmoerm
from dmoerm import AsyncClient, Client
from dmoerm.errors import ConfigError, DataError, ServerError
from dmoerm.integrations import client as clients
from dmoerm.integrations.verl import compute_score
from dmoerm.schema import Message, Query

TALK = [{"role": role, "content": text} for role, text in (("user", "Hi!"), ("assistant", "Yes?"), ("user", "So."))]
MANY = [Query(prompt=f"number {i}", responses=("t" * (i % 5) or "a", "b")) for i in range(100)]


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The pauses between attempts, which are skipped."""
    seconds: list[float] = []
    wait_seconds = clients.wait_seconds

    def no_wait(state):
        seconds.append(wait_seconds(state))
        return 0.0

    monkeypatch.setattr(clients, "wait_seconds", no_wait)
    return seconds


def client(handler: Any = respond, **settings: Any) -> Client:
    return Client("http://server", transport=httpx2.MockTransport(handler), **settings)


def ask(kind: str, handler: Any, queries: Any = MANY[:1], weights: Any = None, **settings: Any) -> list[Any]:
    """The scores that a client of this kind receives from a server."""
    if kind == "sync":
        return list(client(handler, **settings).score_queries(queries, weights))
    made = AsyncClient("http://server", transport=httpx2.MockTransport(handler), **settings)
    return asyncio.run(made.score_queries(queries, weights))


both = pytest.mark.parametrize("kind", ["sync", "async"])


def test_it_scores_as_a_model_does():
    rm = client()
    assert rm.score("why?", ["tt", "a"]) == [score_by_rule("why?", text) for text in ("tt", "a")]
    assert rm.score(TALK, ["t"]) == [score_by_rule(TALK, "t")]
    assert rm.score(["a", TALK], [["t"], ["b", "c"]], ["objective_qa", None]) == [
        [score_by_rule("a", "t", "objective_qa")],
        [score_by_rule(TALK, text) for text in ("b", "c")],
    ]
    assert rm.models() == {"rule": TASKS}
    with pytest.raises(DataError, match="responses: is one text"):
        rm.score("a", "b")


@both
def test_weights_change_the_rewards_as_in_a_model(kind):
    queries = [Query(prompt="why?", responses=("tt", "a" * 50, "")), Query(prompt="so", responses=("t",))]
    plain, weights = ask(kind, respond, queries), {"logic": 3, "empathy": 0.5}
    assert ask(kind, respond, queries, weights=weights) == [[s.reweighted(weights) for s in row] for row in plain]
    assert ask(kind, respond, queries, weights=weights) != plain
    with pytest.raises(DataError, match="the model has no such capability"):
        ask(kind, respond, queries, weights={"wit": 2})
    with pytest.raises(ConfigError, match="no model 'other'"):
        ask(kind, respond, queries, weights=weights, model="other")


@both
def test_many_queries_go_in_few_bounded_requests(kind):
    sizes = []

    def counted(request):
        items = json.loads(request.content)["items"]
        sizes.append(sum(len(item["responses"]) for item in items))
        characters = sum(len(str(item["prompt"])) + sum(map(len, item["responses"])) for item in items)
        assert characters < clients.MAX_CHARACTERS
        return respond(request)

    tools = ({"type": "function", "function": {"name": "clock", "description": "t" * (clients.MAX_CHARACTERS // 3)}},)
    with_tools = [Query(prompt=f"number {i}", responses=("a",), tools=tools) for i in range(6)]
    assert [len(part) for part in clients.split_queries(with_tools)] == [2, 2, 2]
    long = Query(prompt="long", responses=("t" * (clients.MAX_CHARACTERS // 2 - 10),))
    wide = Query(prompt="wide", responses=tuple("t" * (i % 7) + "a" for i in range(3 * clients.MAX_RESPONSES + 1)))
    both = Query(prompt="both", responses=tuple("t" * (clients.MAX_CHARACTERS // 3 - i) for i in range(9)))
    queries = [*MANY, long, long, long, wide, both, MANY[1]]
    results = ask(kind, counted, queries)
    assert [[s.reward for s in row] for row in results] == [[float(r.count("t")) for r in q.responses] for q in queries]
    assert sum(sizes) == sum(len(q.responses) for q in queries)
    assert max(sizes) == clients.MAX_RESPONSES
    assert len(sizes) <= sum(sizes) // clients.MAX_RESPONSES + 8
    assert ask(kind, counted, []) == []


def test_what_is_sent(monkeypatch):
    seen = []

    def keep(request):
        seen.append(request)
        return respond(request)

    monkeypatch.setenv("DMOERM_API_KEY", "secret")
    client(keep, model="mine").score(TALK, ["t"], "chitchat")
    client(keep, api_key="").score("a", ["t"])
    assert seen[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in seen[1].headers
    body = json.loads(seen[0].content)
    assert (body["model"], body["win_probabilities"]) == ("mine", False)
    (item,) = body["items"]
    assert item | {"id": ""} == {"id": "", "prompt": TALK, "responses": ["t"], "task": "chitchat"}


FAULTS = {
    "refused": httpx2.ConnectError("refused"),
    "slow": httpx2.ReadTimeout("slow"),
    "broken": httpx2.RemoteProtocolError("peer closed connection without sending complete message body"),
    "429": httpx2.Response(429, headers={"Retry-After": "7"}),
    "503": httpx2.Response(503, json={"error": {"message": "busy"}}),
    "Ray Serve's 500": httpx2.Response(500, text="Internal Server Error"),
}


def failing(*outcomes: Any) -> Any:
    """A server with these outcomes in turn, which then responds."""
    left = list(outcomes)

    def handle(request):
        outcome = left.pop(0) if left else respond(request)
        if isinstance(outcome, Exception):
            raise outcome
        return httpx2.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)

    return handle


@both
@pytest.mark.parametrize("fault", FAULTS)
def test_transient_errors_are_retried(kind, fault, waits):
    results = ask(kind, failing(*[FAULTS[fault]] * 3))
    assert results == [[score_by_rule(q.prompt, r) for r in q.responses] for q in MANY[:1]]
    assert len(waits) == 3
    if fault == "429":
        assert all(7 <= wait < 8 for wait in waits)
    else:
        assert waits[0] <= clients._FIRST_WAIT
        assert clients._FIRST_WAIT <= waits[2] <= 4 * clients._FIRST_WAIT


@both
def test_after_the_last_attempt_the_error_names_url_reason_and_hint(kind, waits):
    said = r"http://server/v1/score: status 503: busy \(after 9 attempts\); the server is busy"
    with pytest.raises(ServerError, match=said):
        ask(kind, failing(*[FAULTS["503"]] * 9))
    *pauses, _ = waits  # tenacity computes one more after the last attempt, and does not wait
    assert len(pauses) == 8
    assert sum(pauses) >= 20  # seconds: a server has the time to start again
    said = r"ConnectError: refused \(after 1 attempt\); check that the server is running"
    with pytest.raises(ServerError, match=said):
        ask(kind, failing(FAULTS["refused"]), retries=0)


@both
@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (httpx2.Response(422, json={"error": {"message": "no such task"}}), DataError, "422: no such task"),
        (httpx2.Response(413, text="too large"), DataError, "413: too large"),
        (httpx2.Response(401, json={"error": {"message": "wrong key"}}), ServerError, r"check the key in \$DMOERM"),
        (httpx2.Response(404, text="nothing here"), ServerError, "404: nothing here; check that the URL"),
        (httpx2.Response(500, json={"error": {"message": "out of memory"}}), ServerError, "500: out of memory"),
        (httpx2.Response(307, headers={"Location": "http://elsewhere"}), ServerError, "307"),
        (httpx2.Response(200, text="<html>"), ServerError, "not JSON .got '<html>'"),
        (httpx2.Response(200, json=[1]), ServerError, "not a reward server.s response"),
        (httpx2.Response(200, json={"items": [{"scores": [{"reward": None}]}]}), ServerError, r"items\.0\.scores\.0"),
        (httpx2.Response(200, json={"items": []}), ServerError, r"returned \[\] scores for \[2\] responses"),
        (httpx2.LocalProtocolError("bad header"), ServerError, "bad header; the request cannot be sent"),
    ],
)
def test_other_errors_are_not_retried(kind, reply, error, message, waits):
    with pytest.raises(error, match=message):
        ask(kind, failing(reply))
    assert not waits


@both
def test_a_client_bounds_its_requests_in_flight(kind):
    now, seen, lock = [0], [], threading.Lock()

    def enter(change):
        with lock:
            now[0] += change
            seen.append(now[0])

    def slow(request):
        enter(1)
        time.sleep(0.01)
        enter(-1)
        return respond(request)

    async def slow_too(request):
        enter(1)
        await asyncio.sleep(0.01)
        enter(-1)
        return respond(request)

    async def score_all():
        async with AsyncClient("http://server", concurrency=3, transport=httpx2.MockTransport(slow_too)) as rm:
            return await asyncio.gather(*[rm.score(q.prompt, q.responses) for q in MANY[:20]])

    if kind == "sync":
        with client(slow, concurrency=3) as rm, ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda q: rm.score(q.prompt, q.responses), MANY[:20]))
    else:
        results = asyncio.run(score_all())
    assert [row[0].reward for row in results] == [q.responses[0].count("t") for q in MANY[:20]]
    assert max(seen) == 3


@pytest.mark.parametrize("header", ["", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "99999"])
def test_every_retry_after_gives_a_bounded_pause(header, waits):
    list(client(failing(httpx2.Response(429, headers={"Retry-After": header}))).score_queries(MANY[:1]))
    assert 0 <= waits[0] <= 1.1 * clients._MAX_RETRY_AFTER


def test_invalid_urls_and_keys_are_refused(monkeypatch):
    for url in ("localhost:8000", "http://", "http://[::", "ftp://server"):
        with pytest.raises(ConfigError, match="url must be an http"):
            Client(url)
    with pytest.raises(ConfigError, match="an HTTP header cannot contain") as caught:
        Client(api_key="kéy\n")
    assert "kéy" not in str(caught.value)


def test_the_clients_do_without_torch():
    code = "import dmoerm, sys; dmoerm.Client, dmoerm.AsyncClient; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
    assert set(dmoerm.__all__) >= {"Client", "AsyncClient"}
    assert Message(role="user", content="Hi!").model_dump() == TALK[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("source", ["client", "compute_score"])
def test_forked_processes_get_the_rewards_of_their_own_texts(reward_server, source):
    """A parent that has used a client forks eight children; each scores 25 texts, at the same time as the others."""
    scorer = Client(reward_server.url)

    def reward(text: str) -> float:
        if source == "client":
            return scorer.score("So?", [text])[0].reward
        return compute_score("", text, extra_info={"prompt": "So?"}, reward_model=reward_server.url)["score"]

    def score_all(child: int, rewards: Any) -> None:
        rewards.put({length: reward("t" * length) for length in range(25 * child + 1, 25 * child + 26)})

    assert reward("t") == 1.0  # the parent's connection is open
    context = multiprocessing.get_context("fork")
    rewards = context.SimpleQueue()
    children = [context.Process(target=score_all, args=(child, rewards)) for child in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 8
    assert {k: v for _ in children for k, v in rewards.get().items()} == {length: length for length in range(1, 201)}
    assert reward("tt") == 2.0
