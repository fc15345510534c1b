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
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import DataError, DmoermError, ServerError, plain_fault, shorten
from .monitoring import ID_HEADER, Metrics, enter_request
from .settings import Refusal, ServingConfig

OPEN = ("/", "/health", "/ready")
"""Paths that a browser and a load balancer may fetch without a key. The page's files are open, too."""
_PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".svc", ".lan", ".home.arpa")
_CLOSE = {"Connection": "close"}
_CLIENT_CLOSED = 499  # the status that nginx logs


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServingConfig, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.settings, self.metrics, self.paths = app, settings, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; pass other events on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        exchange = _Exchange(send, enter_request(request.headers.get(ID_HEADER, "")))
        try:
            self._check_access(request)
            body = [await self._body(request)]
            if "json" in request.headers.get("content-type", "").lower():
                _check_names(body[0])

            async def replay() -> Message:  # the body once; the guard watches the connection
                return {"type": "http.request", "body": body.pop()} if body else await asyncio.Future()

            async with exchange.while_connected(receive):
                await self.app(scope, replay, exchange.send)
        except ClientDisconnect:
            exchange.status = _CLIENT_CLOSED
        except DmoermError as error:
            await answer(error)(scope, receive, exchange.send)
        except Exception as error:  # a bug: logged without its message, which may contain a text
            frame = traceback.extract_tb(error.__traceback__)[-1]
            fields = {"error": type(error).__name__, "where": f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"}
            logging.getLogger("dmoerm.serving").error("internal server error", extra=fields)
            if not exchange.status:
                await answer(error)(scope, receive, exchange.send)
        finally:
            self._record(scope, exchange)

    def _check_access(self, request: Request) -> None:
        settings, headers, path = self.settings, request.headers, request.scope["path"]
        if "content-length" in headers and "transfer-encoding" in headers:
            # proxies read one, and we the other: request smuggling
            message = "the request has Content-Length and Transfer-Encoding; send one of them"
            raise Refusal(400, message, headers=_CLOSE)
        if request.method in ("GET", "HEAD") and (path in OPEN or path.startswith("/page/")):
            return
        host = headers.get("host", "")
        if (settings.api_key is None or settings.allow_hosts) and not _is_allowed(host, settings.allow_hosts):
            hint = "start it with an API key, or allow the name with --allow-host"
            message = f"the server does not answer to the host {shorten(host)}; {hint}"
            raise Refusal(403, message, "permission_error")
        key = settings.api_key
        if key and not hmac.compare_digest(_given_key(headers), key.encode()):
            hint = "send it as Authorization: Bearer KEY, or in the URL: http://x:KEY@host"
            message, challenge = f"the API key is missing or wrong; {hint}", {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, message, "authentication_error", challenge)

    async def _body(self, request: Request) -> bytes:
        body, limit, seconds = bytearray(), self.settings.max_body_bytes, self.settings.receive_timeout
        length = request.headers.get("content-length", "")
        too_large = Refusal(413, f"the body has more than {limit} bytes; send it in several requests", headers=_CLOSE)
        if length.isdecimal() and int(length) > limit:
            raise too_large
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            late = f"the body did not arrive within {seconds:g} s; send it without pauses"
            raise Refusal(408, late, headers=_CLOSE) from None
        return bytes(body)

    def _record(self, scope: Scope, exchange: _Exchange) -> None:
        """Log the request and count it."""
        path = scope["path"] if scope["path"] in self.paths else "other"  # clients could make any number of names
        seconds = time.monotonic() - exchange.started
        self.metrics.requests.labels(path, exchange.status).inc()
        self.metrics.latency.labels(path).observe(seconds)
        sizes = {name: size for name, size in scope.get("state", {}).items() if name in ("responses", "tokens")}
        fields = {"method": scope["method"], "path": path, "status": exchange.status, "seconds": round(seconds, 4)}
        logging.getLogger("dmoerm.access").info("request", extra={**fields, **sizes})


class _Exchange:
    """One request's connection and its answer's status; the answer gets the request's id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, (ID_HEADER.encode(), request_id.encode())
        self.started, self.status, self._answered = time.monotonic(), 0, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), self._id]}
        elif not message.get("more_body"):
            self._answered = True
        await self._send(message)

    @contextlib.asynccontextmanager
    async def while_connected(self, receive: Receive) -> AsyncIterator[None]:
        """Cancel the block and raise `ClientDisconnect` when the client disconnects before it has its answer."""
        connected = asyncio.timeout(None)  # a cancel scope: it expires when the client leaves

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not self._answered:  # servers also report a disconnect after the answer
                connected.reschedule(0)

        watcher = asyncio.create_task(watch())
        try:
            async with connected:
                yield
        except TimeoutError:
            if not connected.expired():
                raise
            raise ClientDisconnect from None
        finally:
            watcher.cancel()


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


def _is_allowed(header: str, names: Sequence[str]) -> bool:
    """Whether DNS rebinding cannot have sent a browser with this Host header here, or the settings name the host.

    An attacker's page can make its own name resolve to our address, but it cannot have an address as its name, nor a
    name that public DNS does not have: this machine's, a short one, or one under a private top-level domain.
    """
    host = header.partition("]")[0][1:] if header.startswith("[") else header.partition(":")[0]
    host = host.lower().removesuffix(".")  # without the port and the root's dot
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    private = "." not in host or host.endswith(_PRIVATE_DOMAINS) or host == socket.gethostname().lower()
    return private or any(fnmatch.fnmatchcase(host, name.lower()) for name in names)


def _given_key(headers: Headers) -> bytes:
    """Return the key of `Bearer KEY`, or of `Basic …`, which clients send for http://x:KEY@host and http://KEY@host."""
    authorization = headers.get("authorization", "").encode("latin-1")
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
    for kind in (DataError, ServerError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, lambda _, error: answer(error))


def answer(error: Exception) -> Response:
    """Return the answer to a request that failed with this error."""
    status, kind, param, headers = 422, "invalid_request_error", None, None
    match error:
        case DataError():
            message, param = str(error), error.field
        case RequestValidationError():
            status, message, param = _fault_of(error.errors()[0])
        case HTTPException():
            status, message, headers = error.status_code, str(error.detail), error.headers
        case Refusal():
            status, message, kind, headers = error.status, str(error), error.kind, error.headers
        case ServerError():
            status, message, kind = 500, str(error), "server_error"
        case _:
            status, message, kind = 500, f"internal server error: {type(error).__name__}", "server_error"
    content = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    # in ASCII, since a message may quote a lone surrogate, which UTF-8 cannot encode
    return Response(json.dumps(content), status, headers, "application/json")


def _fault_of(first: Any) -> tuple[int, str, str | None]:
    """Return status, message and field of the first error in a body that does not match its protocol."""
    if first["type"] == "json_invalid":
        return 400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}", None
    if isinstance(first.get("input"), bytes):
        return 415, "the body is not sent as JSON; send it with Content-Type: application/json", None
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "extra_forbidden":
        return 422, f"{param}: unknown field; /openapi.json lists the fields", param
    got = "" if first["type"] == "missing" else f" (got {shorten(first.get('input'))})"
    message = plain_fault(first)
    return 422, f"{param or 'the body'}: {message[0].lower()}{message[1:]}{got}", param
