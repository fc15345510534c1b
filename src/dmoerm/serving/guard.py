"""What every request passes before any route sees it: the key, the size and the patience; and what is said of it after.

Nothing of a request's texts is logged: method, path, status, sizes and times are.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..errors import DmoermError
from .errors import TooLarge, TooSlow, Unauthorised, answer
from .metrics import Metrics
from .service import ClientLeft
from .settings import ServingConfig

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_LOG = logging.getLogger("dmoerm.access")
OPEN = ("/", "/health", "/ready")
"""What a browser and a load balancer may fetch without a key; and all of /page/."""


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: Any, settings: ServingConfig, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.settings, self.metrics, self.paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; passes on everything else."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen = _Seen(scope, send)
        try:
            self._check_key(scope)
            await self.app(scope, _replay(await self._body(scope, receive), receive), seen.send)
        except ClientLeft:
            seen.status = 499  # as nginx writes it
        except DmoermError as error:
            await answer(error)(scope, receive, seen.send)
        except Exception as error:  # a fault of ours: said without its message, which may hold a text
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
            logging.getLogger("dmoerm.serving").error("a fault", extra={"error": type(error).__name__, "where": where})
            if not seen.status:
                await answer(error)(scope, receive, seen.send)
        finally:
            self._say(seen)

    def _check_key(self, scope: Scope) -> None:
        key, path = self.settings.api_key, scope["path"]
        if key is None or (scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith("/page/"))):
            return
        given = _header(scope, b"authorization").removeprefix(b"Bearer ")
        if not hmac.compare_digest(given, key.encode()):
            raise Unauthorised("the API key is missing or wrong; send it as Authorization: Bearer KEY")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.settings.max_body_bytes
        told = _header(scope, b"content-length")
        if told.isdigit() and int(told) > limit:
            raise TooLarge(limit)
        try:
            async with asyncio.timeout(self.settings.receive_timeout):
                return await _read(receive, limit)
        except TimeoutError:
            raise TooSlow(self.settings.receive_timeout) from None

    def _say(self, seen: _Seen) -> None:
        path = seen.scope["path"] if seen.scope["path"] in self.paths else "other"
        seconds = time.monotonic() - seen.started
        self.metrics.requests.labels(path, seen.status).inc()
        self.metrics.latency.labels(path).observe(seconds)
        state = seen.scope.get("state", {})
        sizes = {name: state[name] for name in ("responses", "tokens") if name in state}
        about = {"method": seen.scope["method"], "path": path, "status": seen.status, "seconds": round(seconds, 4)}
        _LOG.info("request", extra={**about, **sizes})


class _Seen:
    """What becomes of one request."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self.started, self.status = time.monotonic(), 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


async def _read(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(limit)
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that has been read, then whatever comes from the client: its going away."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
