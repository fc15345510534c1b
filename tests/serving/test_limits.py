"""What a server must not fall over: every request gets an answer with a reason, and the next one its scores."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from running import served

from dmoerm.serving import ServingConfig, create_app
from dmoerm.serving.monitoring import add_request_id
from dmoerm.serving.server import protocol

GOOD = {"items": [{"prompt": "Hi!", "responses": ["Hello.", "Go away."]}]}
SMALL = {
    "max_responses": 8,
    "max_request_tokens": 600,
    "max_body_bytes": 50_000,
    "receive_timeout": 0.5,
    "queue_tokens": 400,
    "api_key": "let me in",
}


@pytest.fixture(scope="module")
def small(trained_run) -> Iterator[str]:
    """A server of small limits and with a key."""
    with served(create_app(trained_run.model, ServingConfig(**SMALL), "small")) as url:
        yield url


@pytest.fixture
def asked(small) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=small, headers={"Authorization": "Bearer let me in"}, timeout=20) as client:
        yield client


def fault(answer: httpx2.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    assert error["message"]
    return error


def sent(**changes: Any) -> bytes:
    """A body, with changes to its only item."""
    return json.dumps({"items": [{"prompt": "Hi!", "responses": ["Hello."]} | changes]}).encode()


MALFORMED = {
    "no JSON": (b'{"items": [', 400, "not valid JSON"),
    "no UTF-8": (b'{"items": "\xff\xfe"}', 400, ""),
    "a number": (b"3", 422, "the body"),
    "null": (b"null", 422, ""),
    "empty": (b"", 422, ""),
    "NaN": (b'{"items": [{"prompt": NaN, "responses": ["x"]}]}', 422, "prompt"),
    "deep": (b'{"items":' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, ""),
    "no items": (b'{"items": []}', 422, "items"),
    "no prompt": (b'{"items": [{"responses": ["x"]}]}', 422, "items.0.prompt"),
    "a wrong type": (sent(responses="Hello."), 422, "items.0.responses"),
    "no responses": (sent(responses=[]), 422, "items.0.responses"),
    "an empty prompt": (sent(prompt=""), 422, "is empty"),
    "an unknown role": (sent(prompt=[{"role": "robot", "content": "x"}]), 422, "role"),
    "a lone surrogate": (sent(prompt="a \ud800 b"), 422, ""),
    "an unknown task": (sent(task="cooking"), 422, "no such task"),
    "a misspelled field": (b'{"items": [{"prompt": "a", "responses": ["b"]}], "weigths": {}}', 422, "weigths: unknown"),
    "a field that went": (b'{"items": [{"prompt": "a", "responses": ["b"]}], "risk": 0.5}', 422, "risk: unknown field"),
    "a misspelled field of an item": (sent(taks="cooking"), 422, "items.0.taks: unknown field"),
    "a field twice": (b'{"items": [{"prompt": "a", "responses": ["b"]}], "items": []}', 422, "items: occurs twice"),
    "a field of an item twice": (
        b'{"items": [{"prompt": "a", "prompt": "a", "responses": ["b"]}]}',
        422,
        "prompt: occurs",
    ),
    "too many responses": (sent(responses=["x"] * 9), 422, "9 responses; the limit is 8"),
    "too many tokens": (sent(responses=["word " * 200] * 4), 422, "more than 600 tokens"),
    "a long text": (sent(prompt="word " * 2000), 422, "tokens long"),
    "a large body": (sent(prompt="x" * 60_000), 413, "more than 50000 bytes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_cannot_be_scored_is_said(asked, name):
    body, status, reason = MALFORMED[name]
    answer = asked.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert reason in fault(answer)["message"]
    assert asked.post("/v1/score", json=GOOD).status_code == 200
    assert fault(asked.post("/v1/score", content=body))["code"] in (413, 415, 422), "it is not said to be JSON"


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/classify", {}, "either input or messages"),
        ("/classify", {"input": "x", "messages": []}, "either input or messages"),
        ("/classify", {"input": []}, "has no texts"),
        ("/classify", {"input": "Just a text."}, "where the response begins"),
        ("/classify", {"input": "<|im_start|>user\nHi!<|im_end|>\n"}, "response"),
        ("/classify", {"messages": [{"role": "user", "content": "Hi!"}]}, "not a response"),
        ("/pooling", {"input": 3}, "input"),
        ("/get_reward", {"query": ["a b"], "prompts": ["c"]}, "does not contain its prompt"),
        ("/get_reward", {"query": ["a b"], "prompts": []}, "1 queries, but 0 prompts"),
        ("/get_reward", {"query": [], "prompts": ["c"]}, "0 queries, but 1 prompts"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, "3 texts"),
        ("/predict", {"inputs": "x", "parameters": {"function_to_apply": "tanh"}}, "unknown function"),
        ("/classify", {"input": [2**31]}, "not a token id"),
        ("/classify", {"conv": []}, "no conversation"),
        ("/classify", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "other parts"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "2 prompts, but 3 responses"),
        ("/score", {"text_1": "a"}, "must be given once"),
        ("/rerank", {"query": "a", "documents": []}, "one or more"),
        ("/rerank", {"query": "a", "documents": ["b"], "texts": ["c"]}, "either documents or texts"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "at least 0"),
        ("/tokenize", {}, "either prompt or messages"),
    ],
)
def test_the_other_protocols_say_it_too(asked, path, body, reason):
    answer = asked.post(path, json=body)
    assert answer.status_code == 422
    assert reason in fault(answer)["message"]


def test_foreign_fields_are_ignored_but_none_is_sent_twice(asked):
    messages = json.dumps([{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}])
    for body, status in (
        (f'{{"messages": {messages}, "truncate_prompt_tokens": 1, "user": "me"}}', 200),
        (f'{{"messages": {messages}, "user": "me", "user": "you"}}', 422),
        (f'{{"messages": {messages[:-2]}, "content": "Go away."}}]}}', 422),
    ):
        answer = asked.post("/classify", content=body, headers={"content-type": "application/json; charset=utf-8"})
        assert answer.status_code == status
        assert status == 200 or fault(answer)["param"] in ("user", "content")


def test_a_key_is_wanted(small):
    with httpx2.Client(base_url=small) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer let me in!"}):
            answer = client.post("/v1/score", json=GOOD, headers=headers)
            assert fault(answer)["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status_code == client.get("/v1/models").status_code == 401
        assert client.post("/", json={"inputs": "x"}).status_code == 401
        assert {client.get(path).status_code for path in ("/", "/health", "/ready")} == {200}


SERVED = (
    "127.0.0.1:8000 10.1.2.3 [::1]:8000 localhost LOCALHOST:80 dmoerm a.localhost. dmoerm.default.svc.cluster.local "
    "host.docker.internal:8000 rm.example.com example.org"
)
FOREIGN = "evil.test evil.test:8000 127.0.0.1.evil.test evil-example.com [evil.test] rm.local.evil.test"


@pytest.fixture(scope="module")
def open_door(trained_run) -> Iterator[str]:
    """A server without a key, which has names."""
    with served(create_app(trained_run.model, ServingConfig(allow_hosts=("*.example.com", "example.org")))) as url:
        yield url


@pytest.mark.parametrize("host", [*SERVED.split(), *FOREIGN.split()])
def test_without_a_key_only_names_that_cannot_be_rebound_are_served(open_door, small, asked, host):
    answer = httpx2.post(f"{open_door}/v1/score", json=GOOD, headers={"Host": host})
    assert answer.status_code == (403 if host in FOREIGN.split() else 200)
    if answer.status_code == 403:
        assert "--allow-host" in fault(answer)["message"]
        assert httpx2.get(f"{open_door}/v1/models", headers={"Host": host}).status_code == 403
        assert httpx2.get(f"{open_door}/ready", headers={"Host": host}).status_code == 200, "for load balancers"
    assert asked.post("/v1/score", json=GOOD, headers={"Host": host}).status_code == 200, "with a key"


def test_no_other_origin_may_ask_unless_named(small, trained_run):
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx2.options(f"{small}/v1/score", headers=headers).headers
    named = ServingConfig(allow_origins=("https://page.example",), api_key="k")
    with served(create_app(trained_run.model, named)) as url:
        answer = httpx2.options(f"{url}/v1/score", headers=headers | {"Access-Control-Request-Headers": "content-type"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"


def raw(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize("host", ["x", "evil.example"])
def test_a_body_with_two_lengths_is_refused_and_its_connection_closed(trained_run, host):
    """A proxy that reads one of them, and we the other, would take a part of the body for the next request."""
    head = f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    body = json.dumps(GOOD)
    with served(create_app(trained_run.model), http=protocol(5)) as url, raw(url) as client:
        lengths = f"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n\r\n"
        client.sendall((head + lengths + "GET /health HTTP/1.1\r\nHost: x\r\n\r\n").encode())
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"send one of them" in answer


def test_a_body_that_trickles_is_given_up(small, asked):
    with raw(small) as slow:
        slow.sendall(
            b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer let me in\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
        started = time.monotonic()
        assert asked.post("/v1/score", json=GOOD).status_code == 200
        answer = slow.recv(4096)
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b"did not arrive within" in answer or b"did not arrive within" in slow.recv(4096)
        assert time.monotonic() - started < 5


def test_headers_that_do_not_arrive_close_the_connection(trained_run):
    """Those of the first request, and those of a later one on the same connection; an idle connection stays."""
    head = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    app = create_app(trained_run.model)
    with served(app, http=protocol(0.5), timeout_keep_alive=60) as url, raw(url) as first, raw(url) as later:
        first.sendall(head)
        for _ in range(2):
            later.sendall(head + b"\r\n")
            answer = later.recv(4096)
            while b'"live"' not in answer:
                answer += later.recv(4096)
            time.sleep(0.75)
        assert first.recv(4096) == b""
        later.sendall(head)
        assert later.recv(4096) == b""


@pytest.mark.parametrize("status", [None, 429])
def test_what_waits_is_bounded(trained_run, status):
    """Beyond the queue's bound clients are told when to come again; those who got in are answered."""
    chosen = {} if status is None else {"overload_status": status}
    settings = ServingConfig(queue_tokens=200, queue_requests=6, batch_tokens=64, batch_wait=0, **chosen)
    body = {"items": [{"prompt": "Hi!", "responses": ["word " * 60] * 4}]}
    with served(create_app(trained_run.model, settings)) as url, httpx2.Client(base_url=url, timeout=30) as client:
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/score", json=body), range(48)))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, status or 503}  # 503 by default: verl ends at 4xx
        refused = next(answer for answer in answers if answer.status_code != 200)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "try again in" in fault(refused)["message"]
        assert client.post("/v1/score", json=GOOD).status_code == 200
        text = client.get("/metrics").text
        assert "dmoerm_queue_tokens 0.0" in text
        assert "dmoerm_queue_requests 0.0" in text


def test_metrics_and_logs_tell_numbers_alone(http, caplog):
    secret = "a sentence that nobody else may read"
    caplog.set_level("INFO", "dmoerm")
    http.post("/v1/score", json={"items": [{"prompt": secret, "responses": [secret]}]})
    http.post("/v1/score", json={"items": [{"prompt": secret, "responses": [secret], "task": secret}]})
    http.get(f"/{secret}")
    text = http.get("/metrics").text
    for name in ("requests_total", "request_seconds", "queue_tokens", "batch_tokens", "reward", "route_confidence"):
        assert f"dmoerm_{name}" in text
    assert 'path="/v1/score",status="200"' in text
    records = [record for record in caplog.records if record.name == "dmoerm.access"]
    assert {record.status for record in records} >= {200, 422, 404}
    assert any(getattr(record, "tokens", 0) > 0 for record in records)
    assert secret not in text + "".join(str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize("sent", ["trainer-7.step_3", "", "two words", "x" * 65])
def test_the_request_s_id_is_in_the_answer_and_in_every_line(http, caplog, sent):
    """A client's id is taken if it is harmless; otherwise the request gets a new one."""
    caplog.set_level("INFO", "dmoerm")
    caplog.handler.addFilter(add_request_id)
    try:
        answers = [http.post("/v1/score", json=GOOD, headers={"X-Request-ID": sent}) for _ in range(2)]
        answers.append(http.post("/v1/score", content=b"{", headers={"X-Request-ID": sent}))
        ids = [answer.headers["x-request-id"] for answer in answers]
        deadline, lines = time.monotonic() + 20, []
        while len(lines) < len(ids) and time.monotonic() < deadline:  # a line is written just after its answer
            lines = [record.request_id for record in caplog.records if getattr(record, "request_id", "") in ids]
        assert lines == ids
    finally:
        caplog.handler.removeFilter(add_request_id)
    assert set(ids) == {sent} if sent.startswith("trainer") else len(set(ids)) == 3 and sent not in ids
