"""Run the application on real sockets: in a thread of the tests, or with `dmoerm serve` in a separate process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import uvicorn


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Run the application; yield its URL once it is ready."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
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
