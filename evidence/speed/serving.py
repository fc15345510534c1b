"""Measure the server under load: rate against offline scoring of the same texts, latency and fairness.

64 clients on loopback send requests of mixed sizes: one to eight responses of 8 to 200 words to a prompt of 8 to 300.
The model is of the recipe `frozen` in float32, on 8 of SmolLM2's layers, so that the server's own work counts. Clients,
server and offline scoring share the cores.

    python -m evidence.speed.serving          prints the rows and writes results/serving.json
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import numpy as np

from dmoerm.model import DMoERM
from dmoerm.model.loading import prepare_process
from dmoerm.schema import Query
from evidence.measure import interleaved, row, write
from evidence.speed.growth import model_of, text

CLIENTS, REQUESTS, ROUNDS, LATENCIES = 64, 128, 2, 150
WAITING = 8  # clients with a large request each, behind which a small one waits
LARGE = Query(prompt=text(200), responses=tuple(text(150, i) for i in range(32)), task="task0")
SMALL = Query(prompt=text(16), responses=(text(16),), task="task0")
TRIES = 3


def main() -> None:
    """Measure rate, latency and fairness."""
    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        model_of(1, 5, "backbone={num_layers: 8, branch_layer: 6, dtype: float32}").save_pretrained(folder)
        model = DMoERM.from_pretrained(folder)
        with server(folder) as url:
            figures = measure(model, mixed(REQUESTS), url)
    write("serving", "python -m evidence.speed.serving", **figures)


def mixed(count: int) -> list[Query]:
    """Return requests of mixed sizes."""
    draw = random.Random(0)
    return [
        Query(
            prompt=text(round(8 * 37 ** draw.random()), i),
            responses=tuple(
                text(round(8 * 25 ** draw.random()), -i * 8 - j) for j in range(draw.choice((1, 1, 2, 4, 8)))
            ),
            task="task0",
        )
        for i in range(count)
    ]


@contextlib.contextmanager
def server(folder: str) -> Iterator[str]:
    """Run `dmoerm serve` on this folder and a free port; yield its URL once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("dmoerm"), "serve", folder, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, f"the server ended at its start: {' '.join(map(str, command))}"
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{url}/ready").status_code == 200:
                    break
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(model: DMoERM, queries: Sequence[Query], url: str) -> dict[str, Any]:
    """Measure the rates in turns, then latency at half of that load, then fairness."""
    rewards: dict[str, list[list[float]]] = {}

    def online() -> None:
        rewards["online"] = asyncio.run(closed_loop(url, queries))

    def offline() -> None:
        rewards["offline"] = [[score.reward for score in scores] for scores in model.score_queries(queries)]

    served, engine = interleaved([online, offline], ROUNDS)
    both = (list(itertools.chain.from_iterable(rewards[side])) for side in ("offline", "online"))
    difference = max(abs(a - b) for a, b in zip(*both, strict=True))
    latency = {
        "alone": quantiles([asyncio.run(alone(url, query)) for query in queries]),
        "half_load": quantiles(asyncio.run(open_loop(url, queries, len(queries) / served / 2))),
    }
    waits = [asyncio.run(behind_large(url)) for _ in range(TRIES)]
    tokens = sum(model.encoder.encode(query).tokens for query in queries)
    return {
        "rows": [row(f"{CLIENTS}_clients_{REQUESTS}_requests_fp32", "offline", served, engine, ROUNDS)],
        "requests_a_second": round(len(queries) / served, 1),
        "tokens_a_request": round(tokens / len(queries)),
        "largest_difference": float(f"{difference:.1e}"),
        "latency_s": latency,
        "a_small_request_behind_eight_large_s": {"median": round(median(waits), 3), "highest": round(max(waits), 3)},
    }


async def closed_loop(url: str, queries: Sequence[Query]) -> list[list[float]]:
    """Let every client send its next request once it has its answer; return the rewards in the requests' order."""
    todo, rewards = iter(range(len(queries))), [list[float]() for _ in queries]

    async def client() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
            for i in todo:
                rewards[i], _ = await ask(http, queries[i])

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return rewards


async def alone(url: str, query: Query) -> float:
    """Return the seconds of a request that no other one waits with."""
    async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
        return (await ask(http, query))[1]


async def behind_large(url: str) -> float:
    """Return the seconds of a small request that arrives while each of some clients waits for a large one."""
    async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
        large = [asyncio.create_task(ask(http, LARGE)) for _ in range(WAITING)]
        await asyncio.sleep(1)  # the first pass runs
        _, seconds = await ask(http, SMALL)
        await asyncio.gather(*large)
        return seconds


async def open_loop(url: str, queries: Sequence[Query], rate: float) -> list[float]:
    """Send requests at random times (a Poisson process) without waiting for answers; return the seconds of each."""
    rng = random.Random(1)
    moments = sorted(rng.uniform(0, LATENCIES / rate) for _ in range(LATENCIES))
    started = time.perf_counter()
    async with httpx2.AsyncClient(base_url=url, timeout=300) as http:

        async def send(moment: float, query: Query) -> float:
            await asyncio.sleep(started + moment - time.perf_counter())
            return (await ask(http, query))[1]

        return await asyncio.gather(*(send(moment, queries[i % len(queries)]) for i, moment in enumerate(moments)))


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and their ratio."""
    median, p99 = np.quantile(seconds, [0.5, 0.99])
    return {"median": round(float(median), 3), "p99": round(float(p99), 3), "ratio": round(float(p99 / median), 2)}


async def ask(http: httpx2.AsyncClient, query: Query) -> tuple[list[float], float]:
    """Request the rewards of a query's responses; return them with the seconds that it took."""
    body = {"items": [query.model_dump(include={"prompt", "responses", "task"})]}
    started = time.perf_counter()
    answer = await http.post("/v1/score", content=json.dumps(body), headers={"Content-Type": "application/json"})
    answer.raise_for_status()
    seconds = time.perf_counter() - started
    return [score["reward"] for score in answer.json()["items"][0]["scores"]], seconds


if __name__ == "__main__":
    main()
