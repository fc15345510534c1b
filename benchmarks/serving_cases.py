"""Measure what load.py does not: responses of one prompt sent singly, requests that are sent again, and overload.

The model is that of serving.py with two experts, in float32.

    python benchmarks/serving_cases.py                      this version
    python benchmarks/serving_cases.py --before FOLDER      under overload, also another checkout
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import numpy as np
from load import mixed
from measure import row, write
from models import TASK, ours
from serving import closed_loop, open_loop, server

from dmoerm import testbed
from dmoerm.model.backbone import bundled_backbone
from dmoerm.schema import Query

ROUNDS, RESPONSES, OVERLOAD, WAIT = 3, 8, 64, 10


def main() -> None:
    """Measure the three cases and write results/serving_cases.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, whose server is overloaded too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours(str(bundled_backbone()), "float32", 2, 24).save_pretrained(folder)
        with server(folder, "--score-cache", "0") as (url, _):
            together, singly, tokens = measure_singly(url)
        with server(folder, "--score-cache", "100000") as (url, _):
            first, again = measure_repeated(url)
        with server(folder, "--queue-seconds", str(WAIT)) as (url, _):
            overload = {"this": asyncio.run(overloaded(url))}
        if options.before:
            with server(folder, source=f"{options.before}/src") as (url, _):
                overload["before"] = asyncio.run(overloaded(url))
    rows = [
        row("singly_against_together", "together", singly, together, ROUNDS),
        row("repeated", "first", again, first, 1),
    ]
    command = "python benchmarks/serving_cases.py" + " --before CHECKOUT" * bool(options.before)
    write("serving_cases", command, rows, tokens=tokens, overload=overload)


def measure_singly(url: str) -> tuple[float, float, dict[str, int]]:
    """Return the seconds of eight responses together and singly, and the tokens that ran, without sharing too."""
    groups = testbed.generate(4 * ROUNDS, RESPONSES)
    times: dict[str, list[float]] = {"together": [], "singly": []}
    tokens = {"together": 0, "singly": 0}
    for group in groups[: ROUNDS + 1]:  # a prompt of about 300 tokens for each round; the first warms up
        prompt = " ".join(str(other.prompt) for other in groups[:8]) + str(group.prompt)
        whole = Query(prompt=prompt, responses=group.responses[:RESPONSES], task=TASK)
        singles = [whole.model_copy(update={"responses": (text,)}) for text in whole.responses]
        for name, queries in (("together", [whole]), ("singly", singles)):
            before, started = tokens_run(url), time.perf_counter()
            asyncio.run(closed_loop(url, queries, len(queries)))
            if group is not groups[0]:
                times[name].append(time.perf_counter() - started)
                tokens[name] = tokens_run(url) - before
    apart = sum(tokens_alone(url, single) for single in singles)
    return median(times["together"]), median(times["singly"]), {**tokens, "singly_without_sharing": apart}


def tokens_alone(url: str, query: Query) -> int:
    """Return the tokens that a query alone runs."""
    before = tokens_run(url)
    asyncio.run(closed_loop(url, [query], 1))
    return tokens_run(url) - before


def tokens_run(url: str) -> int:
    """Return the tokens of all passes so far."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    (total,) = (line.split()[1] for line in lines if line.startswith("dmoerm_batch_tokens_sum"))
    return int(float(total))


def measure_repeated(url: str) -> tuple[float, float]:
    """Return the seconds of the same requests the first and the second time."""
    queries, seconds = mixed(24), []
    for _ in range(2):
        started = time.perf_counter()
        asyncio.run(closed_loop(url, queries, 8))
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


async def overloaded(url: str) -> dict[str, Any]:
    """Measure the rate, then send at twice that rate; return how many were answered or refused, and their seconds."""
    queries = mixed(OVERLOAD, seed=1)
    started = time.perf_counter()
    await closed_loop(url, queries[:24], 8)
    rate = 24 / (time.perf_counter() - started)
    answers = await open_loop(url, queries, 2 * rate, len(queries), answered_or_refused)
    return {"requests_a_second": round(rate, 2), "sent_a_second": round(2 * rate, 2), **summary(answers)}


async def answered_or_refused(http: httpx2.AsyncClient, query: Query) -> tuple[float, float]:
    """Send a request; return the status as the rewards' place, and the seconds, negative if it was refused."""
    body = {"items": [query.model_dump(include={"prompt", "responses", "task"})]}
    started = time.perf_counter()
    answer = await http.post("/v1/score", content=json.dumps(body), headers={"Content-Type": "application/json"})
    seconds = time.perf_counter() - started
    if answer.status_code in (429, 503):
        return 0.0, -seconds
    answer.raise_for_status()
    return 0.0, seconds


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Return the counts, the longest wait for an answer, and for a refusal."""
    answered, refused = [s for s in seconds if s > 0], [-s for s in seconds if s <= 0]
    return {
        "answered": len(answered),
        "answered_s": {"median": round(float(np.median(answered)), 1), "longest": round(max(answered), 1)},
        "refused": len(refused),
        "refused_longest_s": round(max(refused, default=0.0), 2),
    }


if __name__ == "__main__":
    main()
