"""The process around the application: uvicorn, its logs, its shutdown.

On SIGTERM or Ctrl-C the server accepts no new connections, answers the requests it has accepted, and exits.
"""

from __future__ import annotations

import asyncio
import logging.config
import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ServerError
from ..model import DMoERM
from .app import create_app
from .batcher import PassTimeout
from .limits import ServingConfig
from .request_id import RequestIdFilter
from .tracing import Tracing

_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_LAST_ANSWERS = 10  # seconds for the answers to requests that have failed with the model
_KEEP_ALIVE = 75  # seconds; longer than the 60 of common proxies, which would otherwise reuse a closing connection


def serve(
    load: Callable[[], DMoERM],
    settings: ServingConfig,
    *,
    name: str,
    host: str,
    port: int,
    json_logs: bool = True,
    tracing: Tracing | None = None,
    reuse_port: bool = False,
) -> None:
    """Serve until the process is asked to stop.

    Args:
        load: returns the model; called once the server answers /health.
        tracing: gets the traces of requests.
        reuse_port: share the port with other servers that do so; the system divides the connections among them.

    Raises:
        ServerError: the address cannot be used, or another process uses it.
        DmoermError: an error of `load`.

    A pass that does not end within `settings.pass_timeout` ends the process with the exit status 1.
    """
    shared = _bound(host, port, reuse_port)
    logging.config.dictConfig(log_settings(json_logs))

    def stop() -> None:  # all requests have failed; a client that does not read its answer must not keep the process
        server.config.timeout_graceful_shutdown = _LAST_ANSWERS
        server.should_exit = True

    app = create_app(load, settings, name, stop, tracing)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host,
            port,
            http=protocol(settings.receive_timeout),
            log_config=None,
            access_log=False,  # the guard logs more, and no query strings
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            limit_concurrency=settings.max_connections,
        )
    )
    try:
        server.run([shared] if shared else None)
    except SystemExit:
        raise _cannot_listen(host, port, "see the log") from None
    failure = app.state.service.failure
    if isinstance(failure, PassTimeout):  # no exit but this one: others wait for the threads, and one of them is stuck
        logging.getLogger("dmoerm.serving").error(str(failure))
        for process in multiprocessing.active_children():
            process.kill()
        logging.shutdown()
        os._exit(1)
    if failure is not None:
        raise failure


def _bound(host: str, port: int, reuse_port: bool) -> socket.socket | None:
    """Check that the address can be used, before the model is loaded.

    Returns:
        With `reuse_port`, a socket at the address, which other sockets may have too, if all of them share it.
    """
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ServerError("--reuse-port: this system cannot share a port; put a load balancer before the servers")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        if os.name == "posix":  # as asyncio does: connections of an earlier server may still be closing
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        raise _cannot_listen(host, port, error.strerror or str(error)) from None
    if reuse_port:
        return bound
    bound.close()
    return None


def _cannot_listen(host: str, port: int, reason: str) -> ServerError:
    return ServerError(f"cannot listen on {host}:{port}: {reason}; choose another with --host and --port")


def log_settings(json_logs: bool) -> dict[str, Any]:
    """Return the logging configuration: one line per request and event on standard error, never with a text."""
    formats = {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
            "reserved_attrs": [*_RECORD],
        },
        "text": {"()": _TextFormatter},
    }
    handler = {
        "class": "logging.StreamHandler",
        "formatter": "json" if json_logs else "text",
        "filters": ["request_id"],
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": formats,
        "filters": {"request_id": {"()": RequestIdFilter}},
        "handlers": {"stderr": handler},
        "loggers": {name: {"handlers": ["stderr"], "level": "INFO"} for name in ("dmoerm", "uvicorn")},
    }


class _TextFormatter(logging.Formatter):
    """For terminals: time, message and extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _RECORD)
        return f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()} {fields}".rstrip()


def protocol(seconds: float) -> type[H11Protocol]:
    """Return HTTP/1.1 that closes a connection on which the headers of a request do not arrive in time.

    The time of the first request begins with the connection, that of a later one with its first byte.
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

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

    return Protocol
