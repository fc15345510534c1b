"""A judge behind the OpenAI chat protocol, on a loopback port, that fails in every way that real ones do.

It prefers the longer response. What it is asked, what it was paid for and what it got wrong is counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import uvicorn

TRANSIENT = ("429", "429 with retry-after", "500", "dropped", "half json", "wrong json", "empty choices", "slow")
FINAL = ("refusal", "unreadable", "no logprobs", "too long")


class JudgeServer:
    """The server; use as a context manager.

    Args:
        rate: share of requests that meet one of `faults`.
        delay: seconds an answer takes.
        fatal: a status that every request gets, such as 401.
    """

    def __init__(
        self, rate: float = 0.0, faults: Sequence[str] = (), delay: float = 0.0, fatal: int = 0, seed: int = 0
    ) -> None:
        self.rate, self.faults, self.delay, self.fatal = rate, list(faults), delay, fatal
        self.random = random.Random(seed)
        self.paid: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        config = uvicorn.Config(self.app, port=0, log_level="critical", lifespan="off", interface="asgi3")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

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
        text = json.dumps(completion(request, fault))
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


def completion(request: dict[str, Any], fault: str = "") -> dict[str, Any]:
    """The longer response wins, with a probability of 0.7 for its letter."""
    body = request["messages"][1]["content"]
    shown = re.findall(r"^\[m\w{8} (?:first|second) response\]\n(.*?)\n\[/m", body, re.M | re.S)
    letter = "C" if len(shown[0]) == len(shown[1]) else "AB"[len(shown[1]) > len(shown[0])]
    names = request["response_format"]["json_schema"]["schema"]["required"]
    parts = ["{"]
    for i, name in enumerate(names):
        parts += [", " * (i > 0) + f'"{name}": "', letter, '"']
    parts.append("}")
    if fault == "unreadable":
        parts = ["I", " cannot", " decide"]
    top = {"A": -2.0, "B": -2.0, "C": -2.0, letter: -0.36}
    tokens = [
        {
            "token": part,
            "logprob": 0.0,
            "bytes": None,
            "top_logprobs": [
                {"token": t, "logprob": p, "bytes": None} for t, p in (top if part == letter else {part: 0.0}).items()
            ],
        }
        for part in parts
    ]
    message = {"role": "assistant", "content": "".join(parts), "refusal": None}
    if fault == "refusal":
        message |= {"content": None, "refusal": "I would rather not."}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": tokens}}
    if fault == "no logprobs" or not request.get("logprobs"):
        choice["logprobs"] = None
    usage = {"prompt_tokens": len(body) // 4, "completion_tokens": len(parts)}
    usage["total_tokens"] = sum(usage.values())
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"]}
    return {**about, "choices": [choice], "usage": usage}


async def _send(send: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    pairs = {"content-type": "application/json", **(headers or {})}
    head = [(name.encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": data})
