"""The process around the application: uvicorn, its logs, and its end.

On SIGTERM or Ctrl-C no new connection is taken, what was accepted is answered, and the process ends.
"""

from __future__ import annotations

import asyncio
import logging.config
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ServerError
from ..model import DMoERM
from .app import create_app
from .settings import ServingConfig

_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_KEEP_ALIVE = 75  # seconds; longer than the 60 of common proxies, which else meet a connection that just closes


def serve(
    load: Callable[[], DMoERM], settings: ServingConfig, *, name: str, host: str, port: int, json_logs: bool = True
) -> None:
    """Serves until it is told to end.

    Args:
        load: gives the model; called once the server answers /health.

    Raises:
        ServerError: the address is taken, or whatever `load` raises.
    """
    logging.config.dictConfig(log_settings(json_logs))
    app = create_app(load, settings, name, on_failure=lambda: setattr(server, "should_exit", True))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host,
            port,
            http=protocol(settings.receive_timeout),
            log_config=None,
            access_log=False,  # the guard says more, and no query strings
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            limit_concurrency=settings.max_connections,
        )
    )
    try:
        server.run()
    except SystemExit:
        raise ServerError(f"{host}:{port} cannot be served on; is the port taken? Set another by --port") from None
    if app.state.service.failure is not None:
        raise app.state.service.failure


def log_settings(json_logs: bool) -> dict[str, Any]:
    """One line a request and an event, to the standard error stream; never a text that was scored."""
    formats = {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
            "reserved_attrs": [*_RECORD],
        },
        "text": {"()": _Text},
    }
    handler = {"class": "logging.StreamHandler", "formatter": "json" if json_logs else "text"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": formats,
        "handlers": {"stderr": handler},
        "loggers": {name: {"handlers": ["stderr"], "level": "INFO"} for name in ("dmoerm", "uvicorn")},
    }


class _Text(logging.Formatter):
    """For people: time, message, and whatever was said beside it."""

    def format(self, record: logging.LogRecord) -> str:
        more = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _RECORD)
        return f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()} {more}".rstrip()


def protocol(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 that hangs up on a client which opens a connection and does not send a request's headers in time."""

    class Protocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._waiting = self.loop.call_later(seconds, self._hang_up)

        def _hang_up(self) -> None:
            if self.cycle is None:
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
            super().connection_lost(exc)

    return Protocol
