"""Middleware for every request: key or host, size, time and form of the body, and the log and metrics afterwards.

The log has method, path, status, sizes and times; never a text.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import collections
import contextlib
import fnmatch
import hmac
import ipaddress
import json
import logging
import socket
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from ..errors import DataError, DmoermError, shorten
from .error_answers import AmbiguousLength, BodyTimeout, BodyTooLarge, Forbidden, Unauthorized, answer
from .limits import ServingConfig
from .metrics import Metrics
from .request_id import HEADER, enter_request
from .service import ClientLeft
from .tracing import RequestTrace, Tracing

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_LOG = logging.getLogger("dmoerm.access")
OPEN = ("/", "/health", "/ready", "/ping")
"""Paths that a browser and a load balancer may fetch without a key, beside /page/."""
_PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".svc", ".lan", ".home.arpa")
_CLIENT_CLOSED = 499  # the status that nginx logs


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: Any, settings: ServingConfig, metrics: Metrics, paths: frozenset[str], tracing: Tracing | None = None
    ) -> None:
        self.app, self.settings, self.metrics, self.paths, self.tracing = app, settings, metrics, paths, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; pass other events on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = _Exchange(scope, send, enter_request(_header(scope, HEADER)))
        if self.tracing is not None:
            exchange.trace = self.tracing.start(scope["method"], self._route(scope), scope["headers"])
        try:
            if _header(scope, b"content-length") and _header(scope, b"transfer-encoding"):
                raise AmbiguousLength  # proxies read one, and we the other: request smuggling
            self._check_access(scope)
            body = await self._body(scope, receive)
            if b"json" in _header(scope, b"content-type").lower():
                _check_names(body)
            await self.app(scope, _replay(body, receive), exchange.send)
        except ClientLeft:
            exchange.status = _CLIENT_CLOSED
        except DmoermError as error:
            await answer(error, self.settings.overload_status)(scope, receive, exchange.send)
        except Exception as error:  # a bug: logged without its message, which may contain a text
            frame = traceback.extract_tb(error.__traceback__)[-1]
            position = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
            fields = {"error": type(error).__name__, "where": position}
            logging.getLogger("dmoerm.serving").error("internal server error", extra=fields)
            if not exchange.status:
                await answer(error)(scope, receive, exchange.send)
        finally:
            self._record(exchange)

    def _check_access(self, scope: Scope) -> None:
        settings, path = self.settings, scope["path"]
        if scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith("/page/")):
            return
        host = _host_name(_header(scope, b"host").decode("latin-1"))
        if (settings.api_key is None or settings.allow_hosts) and not _is_allowed(host, settings.allow_hosts):
            raise Forbidden(
                f"the server does not answer to the host {shorten(host)}; start it with an API key, or allow the name "
                "with --allow-host"
            )
        key = settings.api_key
        if key and not hmac.compare_digest(_given_key(_header(scope, b"authorization")), key.encode()):
            raise Unauthorized(
                "the API key is missing or wrong; send it as Authorization: Bearer KEY, or in the URL: http://x:KEY@host"
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.settings.max_body_bytes
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > limit:
            raise BodyTooLarge(limit)
        try:
            async with asyncio.timeout(self.settings.receive_timeout):
                return await _read(receive, limit)
        except TimeoutError:
            raise BodyTimeout(self.settings.receive_timeout) from None

    def _route(self, scope: Scope) -> str:
        """Return the path if it is a route; otherwise clients could make any number of names."""
        return scope["path"] if scope["path"] in self.paths else "other"

    def _record(self, exchange: _Exchange) -> None:
        """Log the request, count it and end its trace."""
        scope, status, path = exchange.scope, exchange.status, self._route(exchange.scope)
        seconds = time.monotonic() - exchange.started
        self.metrics.requests.labels(path, status).inc()
        self.metrics.latency.labels(path).observe(seconds)
        state = scope.get("state", {})
        sizes = {name: state[name] for name in ("responses", "tokens") if name in state}
        fields = {"method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 4)}
        _LOG.info("request", extra={**fields, **sizes})
        if exchange.trace is not None:
            exchange.trace.end(status, sizes)


class _Exchange:
    """One request and its answer's status; the answer gets the request's id."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self.scope, self._send, self._id = scope, send, request_id.encode()
        self.started, self.status = time.monotonic(), 0
        self.trace: RequestTrace | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (HEADER, self._id)]}
        await self._send(message)


async def _read(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLarge(limit)
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first gives the body, which has been read, and then the client's further messages."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _check_names(body: bytes) -> None:
    """Raise `DataError` if an object in the body has a name twice. The route reports a body that is not JSON."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            ((name, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
            raise DataError("occurs twice in an object of the body", field=name[:100], hint="send each field once")

    try:
        json.loads(body, object_pairs_hook=check)
    except DataError:
        raise
    except (ValueError, RecursionError):
        pass


def _host_name(header: str) -> str:
    """Return the name or address in a Host header, without the port and a root's dot."""
    name = header.partition("]")[0][1:] if header.startswith("[") else header.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_allowed(host: str, names: Sequence[str]) -> bool:
    """Whether a browser that names this host cannot have been sent here by DNS rebinding, or the settings name it.

    An attacker's page can make its own name resolve to our address, but it cannot have an address as its name, nor a
    name that public DNS does not have: this machine's, a short one, or one under a private top-level domain.
    """
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    private = "." not in host or host.endswith(_PRIVATE_DOMAINS) or host == socket.gethostname().lower()
    return private or any(fnmatch.fnmatchcase(host, name.lower()) for name in names)


def _given_key(authorization: bytes) -> bytes:
    """Return the key of `Bearer KEY`, or of `Basic …`, which clients send for http://x:KEY@host and http://KEY@host."""
    scheme, _, value = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            user, _, password = base64.b64decode(value.strip()).partition(b":")
            return password or user
    return authorization
