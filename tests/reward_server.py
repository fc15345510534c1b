"""A small rule-based server for `/v1/score`: `python reward_server.py PORT`; the fixture is `reward_server`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import uvicorn
from running import free_port, wait_until_ready
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dmoerm.schema import Query
from dmoerm.scores import MIN_REWARD, Score

TASKS = {"chitchat": ["empathy", "proactivity"], "objective_qa": ["correctness", "logic"]}


def score_by_rule(prompt: Any, response: str, task: str | None = None) -> Score:
    """Reward the number of letters t in a response; prompts with a question mark are objective_qa."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    task = task or ("objective_qa" if "?" in text else "chitchat")
    route = {name: 0.9 if name == task else 0.1 for name in TASKS}
    if not response.strip():
        return Score(MIN_REWARD, task, route, {}, None, 1.5)
    letters = float(response.lower().count("t"))
    first, second = TASKS[task]
    parts = {first: letters / 2, second: 0.0, "per_task": letters / 2}
    return Score(letters, task, route, {first: letters / 2, second: len(response) / 100}, 0.5, 1.5, contributions=parts)


class ByRule:
    """A scorer with the server's rule except for `changes`, which records the queries."""

    def __init__(self, **changes: Any) -> None:
        self.queries: list[Query] = []
        self.changes = changes

    def score_queries(self, queries: Sequence[Query]) -> list[list[Score]]:
        self.queries += queries
        return [[self._scored(query, text) for text in query.responses] for query in queries]

    def _scored(self, query: Query, text: str) -> Score:
        prompt = query.prompt if isinstance(query.prompt, str) else query.prompt[-1].content
        score = score_by_rule(prompt, text, query.task)
        return score if score.empty else replace(score, **self.changes)


def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return status and body of the answer to `POST /v1/score`."""
    items = []
    for item in body["items"]:
        if item["task"] not in (None, *TASKS):
            error = {"message": f"the model has no such task (got {item['task']!r})", "type": "invalid_request_error"}
            return 422, {"error": {**error, "param": "items.0.task", "code": 422}}
        scores = [vars(score_by_rule(item["prompt"], text, item["task"])) for text in item["responses"]]
        items.append({"id": item["id"], "scores": scores, "win_probabilities": None})
    return 200, {"model": "rule", "items": items, "usage": {"responses": sum(len(i["scores"]) for i in items)}}


MODELS = {"object": "list", "data": [{"id": "rule", "object": "model", "tasks": TASKS, "owned_by": "tests"}]}


def respond(request: httpx2.Request) -> httpx2.Response:
    """Answer a request without a server, for `httpx2.MockTransport`."""
    if request.url.path == "/v1/score":
        status, body = answer(json.loads(request.content))
        return httpx2.Response(status, json=body)
    return httpx2.Response(200, json=MODELS if request.url.path == "/v1/models" else {})


class RunningServer:
    """The server in a separate process, which can be killed and started again on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the server without waiting for it."""
        self.process = subprocess.Popen([sys.executable, __file__, str(self.port)])

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running_server() -> Iterator[RunningServer]:
    server = RunningServer()
    try:
        wait_until_ready(server.url, server.process)
        yield server
    finally:
        server.kill()


async def score(request: Request) -> JSONResponse:
    await asyncio.sleep(0.02)  # so that a kill interrupts requests
    status, body = answer(await request.json())
    return JSONResponse(body, status)


async def models(_: Request) -> JSONResponse:
    return JSONResponse(MODELS)


async def ready(_: Request) -> JSONResponse:
    return JSONResponse({})


if __name__ == "__main__":
    routes = [Route("/v1/score", score, methods=["POST"]), Route("/v1/models", models), Route("/ready", ready)]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), log_level="error")
