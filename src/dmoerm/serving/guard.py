"""Middleware for every request: key or host, size, time and form of the body, and the log and metrics afterwards.

The log has method, path, status, sizes and times; never a text. Every error is sent as
`{"error": {message, type, param, code}}`:

DataError, a body of the wrong form    422; 400 if it is not JSON, 415 if its content type is not JSON
Refusal                                its own status
any other ServerError                  500 with its message
any other error                        500, without its message, which may contain a text
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
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import DataError, DmoermError, ServerError, plain_fault, shorten
from .monitoring import ID_HEADER, Metrics, enter_request
from .settings import Refusal, ServingConfig

_LOG = logging.getLogger("dmoerm.access")
OPEN = ("/", "/health", "/ready")
"""Paths that a browser and a load balancer may fetch without a key. The page's files are open, too."""
_PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".svc", ".lan", ".home.arpa")
_CLOSE = {"Connection": "close"}
_CLIENT_CLOSED = 499  # the status that nginx logs


class ClientLeft(Exception):
    """The client has disconnected."""


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServingConfig, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.settings, self.metrics, self.paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; pass other events on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = _Exchange(send, enter_request(_header(scope, ID_HEADER)))
        try:
            if _header(scope, b"content-length") and _header(scope, b"transfer-encoding"):
                # proxies read one, and we the other: request smuggling
                message = "the request has Content-Length and Transfer-Encoding; send one of them"
                raise Refusal(400, message, headers=_CLOSE)
            self._check_access(scope)
            body = await self._body(scope, receive)
            if b"json" in _header(scope, b"content-type").lower():
                _check_names(body)
            async with exchange.while_connected(receive):
                await self.app(scope, _replay(body), exchange.send)
        except ClientLeft:
            exchange.status = _CLIENT_CLOSED
        except DmoermError as error:
            await answer(error)(scope, receive, exchange.send)
        except Exception as error:  # a bug: logged without its message, which may contain a text
            frame = traceback.extract_tb(error.__traceback__)[-1]
            position = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
            fields = {"error": type(error).__name__, "where": position}
            logging.getLogger("dmoerm.serving").error("internal server error", extra=fields)
            if not exchange.status:
                await answer(error)(scope, receive, exchange.send)
        finally:
            self._record(scope, exchange)

    def _check_access(self, scope: Scope) -> None:
        settings, path = self.settings, scope["path"]
        if scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith("/page/")):
            return
        host = _host_name(_header(scope, b"host").decode("latin-1"))
        if (settings.api_key is None or settings.allow_hosts) and not _is_allowed(host, settings.allow_hosts):
            hint = "start it with an API key, or allow the name with --allow-host"
            message = f"the server does not answer to the host {shorten(host)}; {hint}"
            raise Refusal(403, message, "permission_error")
        key = settings.api_key
        if key and not hmac.compare_digest(_given_key(_header(scope, b"authorization")), key.encode()):
            hint = "send it as Authorization: Bearer KEY, or in the URL: http://x:KEY@host"
            message, headers = f"the API key is missing or wrong; {hint}", {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, message, "authentication_error", headers)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        settings, body, length = self.settings, bytearray(), _header(scope, b"content-length")
        too_large = f"the body has more than {settings.max_body_bytes} bytes; send it in several requests"
        if length.isdigit() and int(length) > settings.max_body_bytes:
            raise Refusal(413, too_large, headers=_CLOSE)
        try:
            async with asyncio.timeout(settings.receive_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    body += message.get("body", b"")
                    if len(body) > settings.max_body_bytes:
                        raise Refusal(413, too_large, headers=_CLOSE)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            late = f"the body did not arrive within {settings.receive_timeout:g} s; send it without pauses"
            raise Refusal(408, late, headers=_CLOSE) from None

    def _record(self, scope: Scope, exchange: _Exchange) -> None:
        """Log the request and count it."""
        path = scope["path"] if scope["path"] in self.paths else "other"  # clients could make any number of names
        seconds = time.monotonic() - exchange.started
        self.metrics.requests.labels(path, exchange.status).inc()
        self.metrics.latency.labels(path).observe(seconds)
        sizes = {name: size for name, size in scope.get("state", {}).items() if name in ("responses", "tokens")}
        fields = {"method": scope["method"], "path": path, "status": exchange.status, "seconds": round(seconds, 4)}
        _LOG.info("request", extra={**fields, **sizes})


class _Exchange:
    """One request's connection and its answer's status; the answer gets the request's id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, request_id.encode()
        self.started, self.status, self._answered = time.monotonic(), 0, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (ID_HEADER, self._id)]}
        elif not message.get("more_body"):
            self._answered = True
        await self._send(message)

    @contextlib.asynccontextmanager
    async def while_connected(self, receive: Receive) -> AsyncIterator[None]:
        """Cancel the block and raise `ClientLeft` when the client disconnects before it has its answer."""
        task, left = asyncio.current_task(), False
        assert task is not None

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            if not self._answered:  # servers also report a disconnect after the answer
                left = True
                task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
            raise ClientLeft from None
        finally:
            watcher.cancel()


def _replay(body: bytes) -> Receive:
    """Return a `receive` that gives the body, which has been read, and then waits: the guard watches the connection."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await asyncio.Future()

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


# --- errors as answers ---------------------------------------------------------------------------------------------


def add_handlers(app: FastAPI) -> None:
    """Make the application answer every error in the common form."""
    app.add_exception_handler(DataError, lambda _, error: answer(error))
    app.add_exception_handler(ServerError, lambda _, error: answer(error))
    app.add_exception_handler(RequestValidationError, lambda _, error: _invalid_body(error))
    app.add_exception_handler(HTTPException, lambda _, error: _http_error(error))


def answer(error: Exception) -> Response:
    """Return the answer to a request that failed with this error."""
    match error:
        case DataError():
            return _response(422, str(error), param=error.field)
        case Refusal():
            return _response(error.status, str(error), error.kind, headers=error.headers)
        case ServerError():
            return _response(500, str(error), "server_error")
    return _response(500, f"internal server error: {type(error).__name__}", "server_error")


def _invalid_body(error: Any) -> Response:
    """Report the first error in a body that does not match its protocol."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _response(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if isinstance(first.get("input"), bytes):
        return _response(415, "the body is not sent as JSON; send it with Content-Type: application/json")
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "extra_forbidden":
        return _response(422, f"{param}: unknown field; /openapi.json lists the fields", param=param)
    got = "" if first["type"] == "missing" else f" (got {shorten(first.get('input'))})"
    message = plain_fault(first)
    return _response(422, f"{param or 'the body'}: {message[0].lower()}{message[1:]}{got}", param=param)


def _http_error(error: Any) -> Response:
    return _response(error.status_code, str(error.detail), headers=error.headers)


def _response(
    status: int, message: str, kind: str = "invalid_request_error", param: str | None = None, headers: Any = None
) -> Response:
    """Encode in ASCII, since a message may quote a lone surrogate, which UTF-8 cannot encode."""
    content = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return Response(json.dumps(content), status, headers, "application/json")
