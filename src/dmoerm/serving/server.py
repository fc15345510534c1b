"""The process around the application: uvicorn, its logs, its shutdown.

On SIGTERM or Ctrl-C the server accepts no new connections, answers the requests it has accepted, and exits.
"""

from __future__ import annotations

import asyncio
import logging.config
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ServerError
from ..model import DMoERM
from .app import create_app
from .limits import ServingConfig
from .request_id import RequestIdFilter
from .tracing import Tracing

_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
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
        ServerError: the address is in use.
        DmoermError: an error of `load`.
    """
    logging.config.dictConfig(log_settings(json_logs))
    app = create_app(load, settings, name, lambda: setattr(server, "should_exit", True), tracing)
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
        server.run([_shared_socket(host, port)] if reuse_port else None)
    except SystemExit:
        raise _cannot_listen(host, port) from None
    finally:
        if tracing is not None:
            tracing.close()
    if app.state.service.failure is not None:
        raise app.state.service.failure


def _shared_socket(host: str, port: int) -> socket.socket:
    """Return a socket at an address that other sockets may have too, if all of them share it."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ServerError("--reuse-port: this system cannot share a port; put a load balancer before the servers")
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    shared = socket.socket(family)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        shared.bind(address)
    except OSError:
        raise _cannot_listen(host, port) from None
    return shared


def _cannot_listen(host: str, port: int) -> ServerError:
    return ServerError(f"cannot listen on {host}:{port}; is the port in use? Choose another with --port")


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
    """Return HTTP/1.1 that closes a connection whose first request's headers do not arrive in time."""

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(seconds, self._close_idle)

        def _close_idle(self) -> None:
            if self.cycle is None:
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

    return Protocol
