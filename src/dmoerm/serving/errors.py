"""Every error of the server, and the one form in which clients read it: `{"error": {message, type, param, code}}`.

DataError, a body that fits no protocol     422; 400 where it is no JSON, 415 where it is not said to be
Unauthorised                                401
TooSlow, TooLarge                           408, 413
Overloaded                                  429 with Retry-After
NotReady                                    503 with Retry-After
anything else                               500, without its message
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import DataError, ServerError, shorten
from .batching import Overloaded
from .service import NotReady


class Unauthorised(ServerError):
    """No key, or a wrong one."""


class TooLarge(ServerError):
    """A body larger than the server takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body has more than {limit} bytes; send it in several requests")


class TooSlow(ServerError):
    """A body that does not come."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not come within {seconds:g} s; send it at once")


def add_handlers(app: FastAPI) -> None:
    """Makes every error of the application an answer of the one form."""
    app.add_exception_handler(DataError, lambda _, error: answer(error))
    app.add_exception_handler(ServerError, lambda _, error: answer(error))
    app.add_exception_handler(RequestValidationError, lambda _, error: _unreadable(error))
    app.add_exception_handler(HTTPException, lambda _, error: _http(error))


def answer(error: Exception) -> Response:
    """The answer to a request that met this error."""
    message = str(error)
    match error:
        case DataError():
            return _write(422, message, param=error.field)
        case Unauthorised():
            return _write(401, message, "authentication_error", headers={"WWW-Authenticate": "Bearer"})
        case TooSlow():
            return _write(408, message, headers={"Connection": "close"})
        case TooLarge():
            return _write(413, message, headers={"Connection": "close"})
        case Overloaded():
            return _write(429, message, "overloaded_error", headers={"Retry-After": str(error.retry_after)})
        case NotReady():
            return _write(503, message, "overloaded_error", headers={"Retry-After": "1"})
        case ServerError():
            return _write(500, message, "server_error")
    return _write(500, f"the server met a fault of its own: {type(error).__name__}", "server_error")


def _unreadable(error: Any) -> Response:
    """The first fault of a body that fits no protocol."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _write(400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if isinstance(first.get("input"), bytes):
        return _write(415, "the body is not sent as JSON; send it with Content-Type: application/json")
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    got = "" if first["type"] == "missing" else f" (got {shorten(first.get('input'))})"
    message = str(first["msg"])
    return _write(422, f"{param or 'the body'}: {message[0].lower()}{message[1:]}{got}", param=param)


def _http(error: Any) -> Response:
    return _write(error.status_code, str(error.detail), headers=error.headers)


def _write(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    headers: Any = None,
) -> Response:
    """ASCII, since a message may quote a lone surrogate, which UTF-8 cannot hold."""
    content = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return Response(json.dumps(content), status, headers, "application/json")
