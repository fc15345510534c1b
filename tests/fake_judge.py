"""A judge behind the OpenAI chat protocol, on a loopback port.

It can fail in every way that real endpoints do, and counts the requests and what would have been paid for.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from dmoerm.labeling.prompt import LETTERS

Opinion = Callable[[str, str, str], float]
"""Capability, first response, second response, as shown → the probability that the judge writes A."""

TRANSIENT = ("429", "429 with retry-after", "500", "dropped", "half json", "wrong json", "empty choices", "slow")
FINAL = ("refusal", "unreadable", "no logprobs", "too long")


class FakeJudge:
    """A judge behind the server of this process; use as a context manager.

    Args:
        opinion: its opinion; it writes the more likely letter.
        rate: share of requests that fail with one of `faults`.
        delay: seconds per answer.
        fatal: the status of every answer, such as 401.
        rejects: request fields that are answered with an error, in the words of OpenAI's reasoning models.
        reasoning: text in front of each answer.
    """

    def __init__(
        self,
        rate: float = 0.0,
        faults: Sequence[str] = (),
        delay: float = 0.0,
        fatal: int = 0,
        seed: int = 0,
        opinion: Opinion | None = None,
        rejects: Sequence[str] = (),
        reasoning: str = "",
    ) -> None:
        self.opinion = opinion or longer
        self.rate, self.faults, self.delay, self.fatal = rate, list(faults), delay, fatal
        self.rejects, self.reasoning = rejects, reasoning
        self.bodies: list[dict[str, Any]] = []
        self.random = random.Random(seed)
        self.paid: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        self._server: _Server | None = None

    def __enter__(self) -> FakeJudge:
        self._server = _server(os.getpid())
        self._server.judges[id(self)] = self
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        del self._server.judges[id(self)]
        while self._now:  # requests of a killed client still count
            threading.Event().wait(0.005)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.port}/{id(self)}/v1"

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await self._reply(json.loads(body), send)
        finally:
            self._now -= 1

    async def _reply(self, request: dict[str, Any], send: Any) -> None:
        await asyncio.sleep(self.delay)
        fault = self.random.choice(self.faults) if self.random.random() < self.rate else ""
        self.met[fault] += 1
        self.bodies.append(request)
        for name in self.rejects:
            if name in request:
                return await _send(send, *rejection(name, request[name]))
        if self.fatal:
            message = f"Incorrect API key provided: {self.headers[-1].get('authorization')}"
            return await _send(send, self.fatal, {"error": {"message": message, "code": "invalid_api_key"}})
        if fault.startswith("429"):
            headers = {"retry-after": "0.05"} if "retry" in fault else {}
            return await _send(send, 429, {"error": {"message": "slow down", "code": "rate_limit"}}, headers)
        if fault == "500":
            return await _send(send, 500, {"error": {"message": "oops"}})
        if fault == "too long":
            error = {"message": "maximum context length exceeded", "code": "context_length_exceeded"}
            return await _send(send, 400, {"error": error})
        if fault == "dropped":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"500")]})
            return await send({"type": "http.response.body", "body": b"{"})
        text = json.dumps(completion(request, self.opinion, fault, self.reasoning))
        if fault == "half json":
            return await _send(send, 200, text[: len(text) // 2])
        if fault == "wrong json":
            return await _send(send, 200, {"object": "list", "data": []})
        if fault == "empty choices":
            return await _send(send, 200, {**json.loads(text), "choices": []})
        if fault == "slow":
            await asyncio.sleep(0.2)
        self.paid[json.dumps(request, sort_keys=True)] += 1
        return await _send(send, 200, text)


class _Server:
    """One server for all judges of a process, each with its path; a server per judge would start and stop slowly."""

    def __init__(self) -> None:
        self.judges: dict[int, FakeJudge] = {}
        config = uvicorn.Config(self.app, port=0, log_level="critical", lifespan="off", interface="asgi3")
        server = uvicorn.Server(config)
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            threading.Event().wait(0.01)
        self.port = server.servers[0].sockets[0].getsockname()[1]

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        judge = self.judges.get(int(scope["path"].split("/")[1]))
        if judge is None:
            return await _send(send, 503, {"error": {"message": "the judge is closed"}})
        return await judge.app(scope, receive, send)


@functools.cache
def _server(process: int) -> _Server:
    """The server of this process; a forked process has none of its parent's threads."""
    return _Server()


def rejection(field: str, value: Any) -> tuple[int, dict[str, Any]]:
    """Status and body with which OpenAI's reasoning models, and others, reject a field."""
    error: dict[str, Any] = {"type": "invalid_request_error", "param": field, "code": "unsupported_parameter"}
    message = f"Unsupported parameter: '{field}' is not supported with this model."
    if field == "max_tokens":
        message += " Use 'max_completion_tokens' instead."
    if field == "temperature":
        message = f"Unsupported value: 'temperature' does not support {value} with this model. Only 1 is supported."
        error["code"] = "unsupported_value"
    if field == "logprobs":
        error |= {"param": None, "code": None}
        return 403, {"error": {**error, "message": "You are not allowed to request logprobs from this model."}}
    if field == "response_format":
        message = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
        error["code"] = None
    if field == "top_k":  # a strict server's words
        return 422, {"error": {"message": "[{'type': 'extra_forbidden', 'loc': ['body', 'top_k']}] Extra inputs"}}
    return 400, {"error": {**error, "message": message}}


def longer(capability: str, first: str, second: str) -> float:
    """Return the opinion that the longer response is usually better."""
    return 0.5 if len(first) == len(second) else 0.8 if len(first) > len(second) else 0.2


def completion(
    request: dict[str, Any], opinion: Opinion = longer, fault: str = "", reasoning: str = ""
) -> dict[str, Any]:
    """Return the answer to a request: one letter per capability, with the probabilities of all three."""
    body = request["messages"][-1]["content"]
    first, second = re.findall(r"^\[m\w{8} [^]]+\]\n(.*?)\n\[/m", body, re.M | re.S)[1:3]
    names = re.findall(r'"([^"]+)": "A" \|', request["messages"][0]["content"])
    parts: list[tuple[str, dict[str, float]]] = [("{", {})]
    for i, name in enumerate(names):
        p = opinion(name, first, second)
        chances = dict(zip(LETTERS, (p, 1 - p, 0.0) if p != 0.5 else (0.2, 0.2, 0.6), strict=True))
        parts += [(", " * (i > 0) + f'"{name}": "', {}), (max(chances, key=lambda x: chances[x]), chances), ('"', {})]
    parts.append(("}", {}))
    if fault == "unreadable":
        parts = [("I", {}), (" cannot", {}), (" decide", {})]
    parts = [(word, {}) for word in re.findall(r"\S+\s*", reasoning)] + parts
    cut = fault == "cut off"
    if cut:
        parts = parts[:2]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text for text, _ in parts), "refusal": None}
    if fault == "refusal":
        message |= {"content": None, "refusal": "I would rather not."}
    tokens = {"content": [_token(*part) for part in parts]}
    choice = {"index": 0, "finish_reason": "length" if cut else "stop", "message": message, "logprobs": tokens}
    if fault == "no logprobs" or not request.get("logprobs"):
        choice["logprobs"] = None
    usage = {"prompt_tokens": len(body) // 4, "completion_tokens": len(parts)}
    usage["total_tokens"] = sum(usage.values())
    envelope = {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"]}
    return {**envelope, "choices": [choice], "usage": usage}


def _token(text: str, chances: dict[str, float]) -> dict[str, Any]:
    top = [{"token": t, "logprob": math.log(max(p, 1e-9)), "bytes": None} for t, p in (chances or {text: 1.0}).items()]
    return {"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": top}


async def _send(send: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    pairs = {"content-type": "application/json", **(headers or {})}
    head = [(name.encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": data})
