"""Measure the server under 64 clients of mixed sizes: rate against offline scoring, latency, slow readers and aborts.

A request has one to eight responses, short and long; half of the conversations have several turns. The model is that
of serving.py with two experts. Offline scoring and each server run the same texts in turns. Clients, servers and
offline scoring share the cores; processor seconds, of the server's processes alone, do not depend on what else runs.

    python -m evidence.speed.load                                        this version
    python -m evidence.speed.load --before FOLDER --options "--workers 2" another checkout, and this one with options
    python -m evidence.speed.load --hold 30                              only the memory, in bfloat16, over 30 minutes
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil

from dmoerm.model import DMoERM
from dmoerm.model.backbone import bundled_backbone
from dmoerm.schema import Message, Query
from evidence import testbed
from evidence.measure import row, write
from evidence.speed.models import TASK, ours
from evidence.speed.serving import ask, closed_loop, open_loop, quantiles, resident, server

CLIENTS, MISBEHAVING = 64, 16


def main() -> None:
    """Measure the versions in turns and write results/load.json."""
    options = arguments()
    if options.hold:
        hold(options.hold, options.experts)
        return
    queries = mixed(options.requests)
    wait = ("--queue-seconds", "3600")  # nothing is refused; an older checkout limits its queue by tokens alone
    variants: dict[str, tuple[str, tuple[str, ...]]] = {"one_engine": ("", wait)}
    if options.before:
        variants = {"before": (str(options.before), ()), **variants}
    if options.options:
        variants["_".join(options.options.split()).strip("-")] = ("", (*options.options.split(), *wait))
    with tempfile.TemporaryDirectory() as folder:
        ours(str(bundled_backbone()), "float32", options.experts, 24).save_pretrained(folder)
        model = DMoERM.from_pretrained(folder)
        load = [f"{os.getloadavg()[0]:.1f}"]
        rates = measure_rates(model, folder, queries, variants, options.rounds)
        load.append(f"{os.getloadavg()[0]:.1f}")
        behavior = {
            name: asyncio.run(behave(folder, queries, variant, len(queries) / rates[name][0]))
            for name, variant in variants.items()
        }
        load.append(f"{os.getloadavg()[0]:.1f}")
    offline = rates.pop("offline")
    command = f"python -m evidence.speed.load --requests {options.requests} --rounds {options.rounds}"
    command += " --before CHECKOUT" * bool(options.before) + f' --options "{options.options}"' * bool(options.options)
    rows = [
        row(f"{CLIENTS}_clients_{name}{unit}", "offline", rate[i], offline[i], options.rounds)
        for name, rate in rates.items()
        for i, unit in enumerate(("", "_processor_seconds"))
    ]
    sizes = [model.encoder.encode(query).tokens for query in queries]
    write(
        "load",
        command,
        rows,
        requests=len(queries),
        tokens=sum(sizes),
        tokens_a_request=[min(sizes), round(median(sizes)), max(sizes)],
        behavior=behavior,
        load_of_the_machine=load,
    )


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, whose server is measured too")
    parser.add_argument("--options", default="", help="options of a further server of this version")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--hold", type=float, default=0, metavar="MINUTES", help="measure only the memory, for so long")
    return parser.parse_args()


def hold(minutes: float, experts: int) -> None:
    """Write the resident memory of a server under requests of random lengths to results/load_memory.json."""
    sizes: dict[float, float] = {}
    requests = 0
    with tempfile.TemporaryDirectory() as folder:
        ours(str(bundled_backbone()), "float32", experts, 24).save_pretrained(folder)
        with server(folder, "--dtype", "bfloat16", "--queue-seconds", "3600") as (url, process):
            started = time.monotonic()
            while (passed := (time.monotonic() - started) / 60) < minutes:
                asyncio.run(closed_loop(url, mixed(16, seed=requests), 8))
                requests += 16
                sizes[round(passed, 2)] = resident(process.pid)
                print(f"{passed:.1f} minutes, {requests} requests: {sizes[round(passed, 2)]:.0f} MiB", flush=True)
    parts = [f"{minutes * i / 6:g}" for i in range(6)]
    ranges = [[size for at, size in sizes.items() if i <= 6 * at / minutes < i + 1] for i in range(6)]
    tables = [
        {"from minute": part, "MiB": f"{min(r):.0f} to {max(r):.0f}"}
        for part, r in zip(parts, ranges, strict=True)
        if r
    ]
    command = f"python -m evidence.speed.load --hold {minutes:g}"
    write("load_memory", command, [], requests=requests, tables={"Resident memory of the server": tables})


def mixed(count: int, seed: int = 0) -> list[Query]:
    """Return queries of one to eight responses, short and long, of one or several turns; with the benchmark's task."""
    rng = random.Random(seed)
    groups = testbed.generate(max(8, count // 5), 8)
    queries = []
    for _ in range(count):
        group, other = rng.sample(groups, 2)
        responses = group.responses[: min(8, 1 + int(rng.expovariate(0.6)))]
        repeats = min(6, 1 + int(rng.expovariate(1.5)))
        prompt = group.prompt
        if rng.random() < 0.5 and isinstance(prompt, str) and isinstance(other.prompt, str):
            turns = ("user", other.prompt), ("assistant", other.responses[0]), ("user", prompt)
            prompt = tuple(Message(role=role, content=content) for role, content in turns)
        queries.append(Query(prompt=prompt, responses=tuple(" ".join([r] * repeats) for r in responses), task=TASK))
    return queries


def measure_rates(
    model: DMoERM, folder: str, queries: Sequence[Query], variants: dict[str, Any], rounds: int
) -> dict[str, tuple[float, float]]:
    """Return seconds and processor seconds, offline and of each variant: medians of rounds, in turns."""
    times: dict[str, list[tuple[float, float]]] = {"offline": [], **{name: [] for name in variants}}
    for _ in range(rounds):
        started, used = time.perf_counter(), time.process_time()
        expected = [scores[0].reward for scores in model.score_queries(queries)]
        times["offline"].append((time.perf_counter() - started, time.process_time() - used))
        for name, variant in variants.items():
            with variant_server(folder, variant) as (url, process):
                started, used = time.perf_counter(), processor_seconds(process.pid)
                rewards, _ = asyncio.run(closed_loop(url, queries, CLIENTS))
                times[name].append((time.perf_counter() - started, processor_seconds(process.pid) - used))
            difference = max(abs(a - b) for a, b in zip(expected, rewards, strict=True))
            assert difference < 1e-4, f"{name}: rewards differ from offline ones by {difference}"
        print(times, flush=True)
    return {name: (median(wall for wall, _ in each), median(used for _, used in each)) for name, each in times.items()}


def processor_seconds(pid: int) -> float:
    """Return the processor seconds of a running process and of its running children."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def variant_server(folder: str, variant: tuple[str, Sequence[str]]) -> Any:
    """Run the server of a variant: a checkout (empty: this one) and options."""
    checkout, options = variant
    return server(folder, *options, source=f"{checkout}/src" if checkout else None)


async def behave(folder: str, queries: Sequence[Query], variant: Any, rate: float) -> dict[str, Any]:
    """Measure one server: latency at half the load, then the rate beside clients that abort or read slowly."""
    with variant_server(folder, variant) as (url, process):
        latency = quantiles(await open_loop(url, queries, rate / 2, len(queries)))
        async with health(url) as waits, misbehaving(url, queries):
            started = time.perf_counter()
            await closed_loop(url, queries, CLIENTS)
            beside = len(queries) / (time.perf_counter() - started)
        await asyncio.sleep(1)
        metrics = httpx2.get(f"{url}/metrics").text
        (left,) = (line.split()[1] for line in metrics.splitlines() if line.startswith("dmoerm_queue_requests "))
        return {
            "requests_a_second": round(rate, 2),
            "half_the_load_s": latency,
            "beside_aborts_and_slow_readers": {
                "requests_a_second": round(beside, 2),
                "health_s": quantiles(waits),
                "left_in_the_queue": float(left),
            },
            "memory_mib": resident(process.pid),
        }


@contextlib.asynccontextmanager
async def health(url: str) -> AsyncIterator[list[float]]:
    """Ask for /health ten times a second during the block; yield the seconds that the answers took."""
    waits: list[float] = []

    async def watch() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
            while True:
                started = time.perf_counter()
                (await http.get("/health")).raise_for_status()
                waits.append(time.perf_counter() - started)
                await asyncio.sleep(0.1)

    async with running([watch()]):
        yield waits


@contextlib.asynccontextmanager
async def misbehaving(url: str, queries: Sequence[Query]) -> AsyncIterator[None]:
    """Run clients that close their connection before the answer, and clients that read it a few bytes at a time."""

    async def abort(number: int) -> None:
        rng = random.Random(number)
        async with httpx2.AsyncClient(base_url=url) as http:
            while True:
                with contextlib.suppress(TimeoutError, httpx2.HTTPError):
                    await asyncio.wait_for(ask(http, rng.choice(queries)), rng.uniform(0.05, 1))

    async with running([*map(abort, range(MISBEHAVING)), *(read_slowly(url, queries[i]) for i in range(MISBEHAVING))]):
        yield


async def read_slowly(url: str, query: Query) -> None:
    """Send a request over and over, and read each answer 16 bytes at a time, ten times a second."""
    address = urlsplit(url)
    body = json.dumps({"items": [query.model_dump(include={"prompt", "responses", "task"})]}).encode()
    head = "POST /v1/score HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
    while True:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=64)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while await reader.read(16):
            await asyncio.sleep(0.1)
        writer.close()


@contextlib.asynccontextmanager
async def running(works: Sequence[Any]) -> AsyncIterator[None]:
    """Run coroutines during the block and cancel them at its end; one that fails is an error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [r for r in results if isinstance(r, Exception)]
        assert not failed, failed[0]


if __name__ == "__main__":
    main()
