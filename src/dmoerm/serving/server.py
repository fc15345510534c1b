"""The process around the application: uvicorn, its shutdown, and several workers behind one port.

On SIGTERM or Ctrl-C the server accepts no new connections, answers the requests it has accepted, and exits.

Each worker is a process with a model and a queue of its own. They accept connections from one socket, which the first
process opens and hands to them: a connection goes to a worker that is ready, and waits in the socket while none is.
"""

from __future__ import annotations

import asyncio
import functools
import logging.config
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ServerError
from ..model import DMoERM
from .app import create_app
from .batcher import PassTimeout
from .monitoring import log_settings
from .settings import ServingConfig

_LOG = logging.getLogger("dmoerm.serving")
_LAST_ANSWERS = 10  # seconds for the answers to requests that have failed with the model
_KEEP_ALIVE = 75  # seconds; longer than the 60 of common proxies, which would otherwise reuse a closing connection
_BACKLOG = 2048  # connections that wait to be accepted
_BROKEN = 2  # exit status of a worker that another start would not help


def serve(
    load: Callable[..., DMoERM],
    settings: ServingConfig,
    *,
    name: str,
    host: str,
    port: int,
    workers: int = 1,
    json_logs: bool = True,
) -> None:
    """Serve until the process is asked to stop.

    Args:
        load: returns the model; called once the server answers /health. With several workers it is picklable, takes
            `device`, and is called before a worker accepts connections.
        workers: processes, each with a model: on the GPUs in turn, or with a share of the processor's threads.

    Raises:
        ServerError: the address cannot be used, or another process uses it; a worker cannot load the model.
        DmoermError: an error of `load`.

    A pass that does not end within `settings.pass_timeout` ends the process with the exit status 1.
    """
    listening = _bound(host, port)
    logging.config.dictConfig(log_settings(json_logs))
    if workers == 1:
        return _serve(load, settings, name, listening)
    gpus, threads = torch.cuda.device_count(), max(1, torch.get_num_threads() // workers)

    def start(number: int) -> BaseProcess:  # a fork would share CUDA's state
        arguments = functools.partial(load, device=f"cuda:{number % gpus}" if gpus else None), settings, name, listening
        options: Any = {"args": (*arguments, json_logs, threads), "daemon": True}
        worker = multiprocessing.get_context("spawn").Process(target=_work, **options)
        worker.start()
        return worker

    return _supervise(start, workers, listening)


def _serve(load: Callable[[], DMoERM], settings: ServingConfig, name: str, listening: socket.socket) -> None:
    """Serve in this process."""

    def stop() -> None:  # all requests have failed; a client that does not read its answer must not keep the process
        server.config.timeout_graceful_shutdown = _LAST_ANSWERS
        server.should_exit = True

    app = create_app(load, settings, name, stop)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol(settings.receive_timeout),
            log_config=None,
            access_log=False,  # the guard logs more, and no query strings
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            limit_concurrency=settings.max_connections,
        )
    )
    server.run([listening])
    failure = app.state.service.failure
    if isinstance(failure, PassTimeout):  # no exit but this one: others wait for the threads, and one of them is stuck
        _LOG.error(str(failure))
        logging.shutdown()
        os._exit(1)
    if failure is not None:
        raise failure


# --- several workers -----------------------------------------------------------------------------------------------


def _work(
    load: Callable[[], DMoERM],
    settings: ServingConfig,
    name: str,
    listening: socket.socket,
    json_logs: bool,
    threads: int,
) -> None:
    """Load the model, then serve; the main function of a worker's process."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:  # a killed parent cannot end its workers
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    logging.config.dictConfig(log_settings(json_logs))
    torch.set_num_threads(threads)
    try:
        model = load()
    except Exception as error:  # whatever a file, a device or a library raises
        _LOG.error("the model cannot be loaded", extra={"error": str(error)})
        sys.exit(_BROKEN)
    _serve(lambda: model, settings, name, listening)


def _supervise(start: Callable[[int], BaseProcess], count: int, listening: socket.socket) -> None:
    """Start the workers, and again those that end, until this process is asked to stop.

    Raises:
        ServerError: a worker cannot load the model.
    """
    workers: list[BaseProcess] = []
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True
        listening.close()  # else connections would wait for an answer when all workers have closed it
        for worker in workers:
            worker.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for number in range(count):
        workers.append(start(number))
    while not stopping:
        wait([worker.sentinel for worker in workers])
        for number, worker in enumerate(workers):
            if stopping or worker.exitcode is None:
                continue
            if worker.exitcode == _BROKEN:
                stop()
                raise ServerError("a worker cannot load the model; see the log")
            _LOG.error("a worker has ended and is started again", extra={"exit": worker.exitcode})
            workers[number] = start(number)
    stop()  # also those that started in the meantime
    for worker in workers:
        worker.join()


# --- sockets -------------------------------------------------------------------------------------------------------


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address. Raises `ServerError` if it cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        if os.name == "posix":  # as asyncio does: connections of an earlier server may still be closing
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServerError(f"cannot listen on {host}:{port}: {reason}; choose another with --host and --port") from None
    return bound


def protocol(seconds: float) -> type[H11Protocol]:
    """Return HTTP/1.1 that closes a connection on which the headers of a request do not arrive in time.

    The clock of the first request starts with the connection, the clock of a later one with its first byte.
    """

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(seconds, self._close_idle)

        def data_received(self, data: bytes) -> None:
            if self._timer is None and self._between_requests:
                self._timer = self.loop.call_later(seconds, self._close_idle)
            super().data_received(data)
            if not self._between_requests:
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        @property
        def _between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _close_idle(self) -> None:
            if self._between_requests:
                self.transport.close()

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol
