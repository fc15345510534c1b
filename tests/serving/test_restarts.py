"""Servers that share a port are killed and replaced under load; no request of the package's client is lost."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Load, command, free_port


@contextlib.contextmanager
def server(folder: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One of the servers at a port, once it is ready itself; another one may answer at the port before."""
    with command(folder, port, "--reuse-port", log=log) as process:
        deadline = time.monotonic() + 120
        while '"message": "ready"' not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process


@pytest.mark.slow
def test_servers_are_killed_and_replaced_under_load(trained_run: Any, tmp_path: Path) -> None:
    """Two servers; one is killed with SIGKILL; a third one takes over from the other, which drains on SIGTERM."""
    folder, port = trained_run.folder / "model", free_port()
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    with (
        server(folder, port, first) as killed,
        server(folder, port, second) as drained,
        Load(f"http://127.0.0.1:{port}") as load,
    ):
        load.more()
        killed.kill()
        killed.wait()
        load.more()
        with server(folder, port, third):
            drained.send_signal(signal.SIGTERM)
            assert drained.wait(60) in (0, -signal.SIGTERM)
            load.more()
            load.end()
    assert all('"path": "/v1/score"' in log.read_text() for log in (first, second, third))
    assert not any('"status": 5' in line for line in second.read_text().splitlines() if "/v1/score" in line)
    load.check(trained_run.model)
