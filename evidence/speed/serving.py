"""Measure the server under load: rate against offline scoring of the same texts, latency and memory.

32 clients on loopback send one prompt with one response per request. SmolLM2-135M, five experts (LoRA, rank 16 on q and
v) on the last 6 of 30 layers, float32. Clients, server and offline scoring share the cores.

python -m evidence.speed.serving [MINUTES of full load for the memory, 10]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from dmoerm.model import DMoERM
from dmoerm.model.backbone import bundled_backbone
from dmoerm.schema import Query
from evidence import testbed
from evidence.measure import interleaved, row, write
from evidence.speed.models import TASK, ours

CLIENTS, TEXTS, ROUNDS, LATENCIES = 32, 128, 3, 400


def main() -> None:
    """Measure rate, latency and memory."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    queries = texts(TEXTS)
    with tempfile.TemporaryDirectory() as folder:
        ours(str(bundled_backbone()), "float32", 5, 24).save_pretrained(folder)
        model = DMoERM.from_pretrained(folder)
        with server(folder) as (url, process):
            figures = measure(model, queries, url, process.pid, minutes)
    write("serving", f"python -m evidence.speed.serving {minutes:g}", **figures)


def texts(count: int) -> list[Query]:
    """Return queries of one testbed prompt and one response each, with the benchmark's task."""
    groups = testbed.generate(count // 5, 2)
    queries = [Query(prompt=group.prompt, responses=group.responses[:1], task=TASK) for group in groups]
    return random.Random(0).sample(queries, len(queries))[:count]


@contextlib.contextmanager
def server(folder: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `dmoerm serve` on this folder and a free port; yield its URL and process once it is ready."""
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
            time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        process.wait()


def measure(model: DMoERM, queries: Sequence[Query], url: str, pid: int, minutes: float) -> dict[str, Any]:
    """Measure the rates in turns, then latency at half of that load, then memory under full load."""
    rewards: dict[str, list[float]] = {}

    def online() -> None:
        rewards["online"] = asyncio.run(closed_loop(url, queries))[0]

    def offline() -> None:
        rewards["offline"] = [scores[0].reward for scores in model.score_queries(queries)]

    served, engine = interleaved([online, offline], ROUNDS)
    rate = len(queries) / served
    difference = max(abs(a - b) for a, b in zip(rewards["offline"], rewards["online"], strict=True))
    waits = {
        "half_the_clients": asyncio.run(closed_loop(url, [*queries, *queries], CLIENTS // 2))[1],
        "at_random": asyncio.run(open_loop(url, queries, rate / 2)),
    }
    tokens = sum(model.encoder.encode(query).tokens for query in queries)
    return {
        "rows": [row(f"{CLIENTS}_clients_{TEXTS}_texts_fp32", "offline", served, engine, ROUNDS)],
        "requests_a_second": round(rate, 1),
        "tokens_a_text": round(tokens / len(queries)),
        "largest_difference": float(f"{difference:.1e}"),
        "latency_at_half_the_load_s": {name: quantiles(seconds) for name, seconds in waits.items()},
        "memory_mib": hold(url, queries, pid, minutes),
    }


async def closed_loop(url: str, queries: Sequence[Query], clients: int = CLIENTS) -> tuple[list[Any], list[float]]:
    """Let every client send its next text once it has its answer; return rewards and seconds in the texts' order."""
    todo = iter(range(len(queries)))
    rewards: list[Any] = [None] * len(queries)
    seconds = [0.0] * len(queries)

    async def client() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
            for i in todo:
                rewards[i], seconds[i] = await ask(http, queries[i])

    await asyncio.gather(*(client() for _ in range(clients)))
    return rewards, seconds


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


def hold(url: str, queries: Sequence[Query], pid: int, minutes: float) -> dict[str, float]:
    """Return the server's resident memory in MiB after a tenth of the time and at its end, and the growth."""
    started, sizes = time.perf_counter(), list[tuple[float, float]]()
    while (passed := (time.perf_counter() - started) / 60) < minutes:
        asyncio.run(closed_loop(url, queries))
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        sizes.append((passed, round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)))
    if not sizes:
        return {}
    first, last = next((size for passed, size in sizes if passed >= minutes / 10), sizes[-1][1]), sizes[-1][1]
    return {"after_a_tenth": first, "at_the_end": last, "growth": round(last / first - 1, 4)}


async def ask(http: httpx2.AsyncClient, query: Query) -> tuple[float, float]:
    """Request the reward of one text; return it with the seconds that it took."""
    body = {"items": [query.model_dump(include={"prompt", "responses", "task"})]}
    started = time.perf_counter()
    answer = await http.post("/v1/score", content=json.dumps(body), headers={"Content-Type": "application/json"})
    answer.raise_for_status()
    return answer.json()["items"][0]["scores"][0]["reward"], time.perf_counter() - started


if __name__ == "__main__":
    main()
