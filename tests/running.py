"""Run the application on real sockets: in a thread of the tests, or with `dmoerm serve` in a process; and clients."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

import dmoerm


def in_short(values: Iterable[Any], *short: Any) -> list[Any]:
    """Parameters of a test: `make test` runs those of `short`, `make test-all` the others, too."""
    return [value if value in short else pytest.param(value, marks=pytest.mark.slow) for value in values]


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[str]:
    """Run the application with uvicorn's options; yield its URL once it is ready."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        wait_until_ready(url)
        yield url
    finally:
        server.should_exit = True
        thread.join(30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def command(model: Path | str, port: int, *options: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dmoerm serve`; yield the process once it is ready, and kill it at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("dmoerm"), "serve", model, "--port", str(port), *options],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield process
    finally:
        process.kill()
        process.wait(30)


def wait_until_ready(url: str, process: Any = None, log: Path | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, log and log.read_text()[-2000:]
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"no server after {seconds} s: {log and log.read_text()[-2000:]}")


class Load:
    """Four clients that score one text after the other until the block ends; none may lose a request."""

    TEXTS = tuple(f"Answer number {i}, with a few words more." for i in range(50))

    def __init__(self, url: str) -> None:
        self.rewards: list[tuple[str, float]] = []
        self._url, self._stop, self._texts = url, threading.Event(), itertools.cycle(self.TEXTS)
        self._pool = concurrent.futures.ThreadPoolExecutor(4)

    def __enter__(self) -> Load:
        self._clients = [self._pool.submit(self._ask) for _ in range(4)]
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Return once the clients' last requests are answered."""
        self._stop.set()
        for client in self._clients:
            client.result(120)  # raises what the client raised: a lost request

    def _ask(self) -> None:
        while not self._stop.is_set():
            text = next(self._texts)
            with dmoerm.Client(self._url) as client:  # a connection each: the system chooses the server again
                (score,) = client.score("Which number?", [text])
            self.rewards.append((text, score.reward))

    def more(self, count: int = 20) -> None:
        """Return once that many further requests are answered."""
        goal = len(self.rewards) + count
        while len(self.rewards) < goal:
            assert not any(client.done() for client in self._clients), [client.exception(0) for client in self._clients]
            time.sleep(0.02)

    def check(self, model: Any) -> None:
        """Compare the rewards with those of the model."""
        expected = dict(zip(self.TEXTS, model.score("Which number?", self.TEXTS), strict=True))
        assert all(abs(reward - expected[text].reward) < 1e-4 for text, reward in self.rewards)
