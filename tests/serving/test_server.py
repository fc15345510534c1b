"""`dmoerm serve` as a process: it starts, says what is wrong, answers what it took before it ends, and holds out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from running import Load, command, free_port, wait_until_ready
from typer.testing import CliRunner

from dmoerm.cli import app, serve  # the module
from dmoerm.errors import ServerError
from dmoerm.schema import Query
from dmoerm.serving import ServingConfig
from dmoerm.serving.batcher import PassTimeout
from dmoerm.serving.service import Service

LARGE = {"items": [{"prompt": f"Question {i}?", "responses": ["word " * 75] * 4} for i in range(4)]}


@pytest.mark.slow
def test_every_accepted_request_is_answered_before_the_end(trained_run, tmp_path):
    """SIGTERM with 12 requests in the queue: 12 answers, no new connection, and the process ends."""
    port, log = free_port(), tmp_path / "log"
    options = ("--batch-tokens", "500", "--queue-seconds", "600")
    with command(trained_run.folder / "model", port, *options, log=log) as process:
        url = f"http://127.0.0.1:{port}"
        client = httpx2.Client(base_url=url, timeout=60)
        with client, concurrent.futures.ThreadPoolExecutor(12) as pool:
            requests = [pool.submit(client.post, "/v1/score", json=LARGE) for _ in range(12)]
            while "dmoerm_queue_requests 12.0" not in client.get("/metrics").text:
                assert not any(request.done() for request in requests), "the requests ended before the signal"
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            answers = [request.result() for request in requests]
        assert [answer.status_code for answer in answers] == [200] * 12
        assert process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/health")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    served = [line for line in lines if line.get("path") == "/v1/score"]
    assert [line["status"] for line in served] == [200] * 12
    assert all(line["responses"] == 16 and line["seconds"] > 0 for line in served)
    assert len({line["request_id"] for line in served}) == 12


@pytest.fixture(autouse=True)
def own_logs():
    """The command sets up the process's logs: for a test's own time, when it runs in the tests' process."""
    loggers = [logging.getLogger(name) for name in ("dmoerm", "uvicorn")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.level = handlers, level


def invoke(*arguments: str):
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["serve", *arguments])


def test_what_cannot_be_served_is_said(trained_run, tmp_path):
    model, port = str(trained_run.folder), str(free_port())
    blank, binary = tmp_path / "blank", tmp_path / "binary"
    blank.write_text(" \n")
    binary.write_bytes(b"\xff")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken_port = taken.getsockname()[1]
        for message, *arguments in (
            ("is not a dmoerm model", str(tmp_path)),
            ("error: demoo: there is no such folder; give", "demoo"),
            ("error: runs/nothere: there is no such folder, and", "runs/nothere"),
            (f"cannot listen on 127.0.0.1:{taken_port}: Address already in use", model, "--port", str(taken_port)),
            ("cannot listen on no.such.host.invalid", model, "--host", "no.such.host.invalid", "--port", port),
            ("is empty", model, "--api-key-file", str(blank)),
            ("is not a text in UTF-8", model, "--api-key-file", str(binary)),
            ("no key: No such file", model, "--api-key-file", str(tmp_path / "no key")),
        ):
            result = invoke(*arguments)
            assert result.exit_code == 1
            said = " ".join(result.stderr.split())
            assert said.startswith(message) if message.startswith("error") else message in said


def test_an_open_door_is_warned_of(tmp_path):
    result = invoke(str(tmp_path), "--host", "0.0.0.0", "--port", str(free_port()))
    assert "no API key is set" in result.stderr


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        (["--host", "rm.example.com"], ("rm.example.com",)),
        (["--host", "rm.example.com", "--allow-host", "*.test"], ("*.test", "rm.example.com")),
        (["--host", "rm.example.com", "--api-key-file", "key"], ()),
        (["--host", "rm.example.com", "--api-key-file", "key", "--allow-host", "a"], ("a", "rm.example.com")),
    ],
)
def test_the_hosts_are_those_of_the_options(trained_run, tmp_path, monkeypatch, options, hosts):
    given = []
    monkeypatch.setattr("dmoerm.serving.serve", lambda load, settings, **_: given.append(settings))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("k")
    assert invoke(str(trained_run.folder), *options).exit_code == 0
    assert given[0].allow_hosts == hosts


def test_the_command_and_the_settings_have_the_same_defaults():
    given = {name: parameter.default for name, parameter in inspect.signature(serve.command).parameters.items()}
    for name, field in ServingConfig.model_fields.items():
        assert name not in given or str(given[name]) == str(field.default), name
    assert len(given.keys() & ServingConfig.model_fields.keys()) == 5


HANGS = """
import sys, threading
from dmoerm.cli import app
from dmoerm.model import DMoERM

score = DMoERM.score_encoded
DMoERM.score_encoded = lambda self, encoded, *rest: (
    threading.Event().wait() if len(encoded[0].responses) == 3 else score(self, encoded, *rest)
)
app(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_pass_that_never_returns_ends_the_process(trained_run):
    """The warm-up passes end; the next one does not. A supervisor sees the exit status and starts the server again."""
    port = free_port()
    command = [sys.executable, "-c", HANGS, "serve", trained_run.folder / "model", "--port", str(port)]
    process = subprocess.Popen([*command, "--pass-timeout", "1"], stderr=subprocess.PIPE, text=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        body = {"items": [{"prompt": "Hi!", "responses": ["a", "b", "c"]}]}
        answer = httpx2.post(f"http://127.0.0.1:{port}/v1/score", json=body, timeout=60)
        assert answer.status_code == 500
        assert "see its log" in answer.json()["error"]["message"]
        _, log = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "a pass has not ended within 1 s" in log
        assert "Traceback" not in log
    finally:
        process.kill()


def test_a_server_whose_pass_is_stuck_is_not_ready(trained_run, monkeypatch):
    go, exits = threading.Event(), []
    service = Service(lambda: trained_run.model, "tiny", ServingConfig(pass_timeout=0.1), lambda: exits.append(1))

    async def start():
        async with service.running():
            await service.loaded()
            assert service.ready
            monkeypatch.setattr(type(trained_run.model), "score_encoded", lambda *_: go.wait(20))
            with pytest.raises(ServerError, match="cannot score any more"):
                await service.batcher.score([Query(prompt="Hi!", responses=("Hello.",))])
            await asyncio.sleep(0)
            assert not service.ready

    try:
        asyncio.run(start())
    finally:
        go.set()
    assert isinstance(service.failure, PassTimeout)
    assert exits == [1]


def workers_of(process: subprocess.Popen[bytes]) -> set[int]:
    """The processes of the workers; Python's resource tracker is a child, too."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the workers' processes are read from /proc")
def test_a_worker_that_is_killed_under_load_is_started_again(trained_run, tmp_path):
    """Two workers behind one port; no request of the package's client is lost, and both end with the server."""
    port, log = free_port(), tmp_path / "log"
    with (
        command(trained_run.folder / "model", port, "--workers", "2", log=log) as process,
        Load(f"http://127.0.0.1:{port}") as load,
    ):
        load.more()
        first = workers_of(process)
        assert len(first) == 2
        os.kill(min(first), signal.SIGKILL)
        load.more()
        while log.read_text().count('"message": "ready"') < 3:
            load.more(1)
        assert len(workers_of(process)) == 2
        assert min(first) not in workers_of(process)
        load.end()
        workers = workers_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    load.check(trained_run.model)


@pytest.mark.slow
def test_workers_that_cannot_load_the_model_end(trained_run, tmp_path):
    folder = shutil.copytree(trained_run.folder / "model", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    process = [Path(sys.executable).with_name("dmoerm"), "serve", folder, "--port", str(free_port()), "--workers", "2"]
    result = subprocess.run(process, capture_output=True, text=True)
    assert result.returncode == 1
    assert "a worker cannot load the model; see the log" in result.stderr
    assert "the model cannot be loaded" in result.stderr
