"""Map errors to answers. Every error is sent as `{"error": {message, type, param, code}}`.

UnrecognizedPrompt                         400
DataError, a body of the wrong form        422; 400 if it is not JSON, 415 if its content type is not JSON
AmbiguousLength                            400
Unauthorized, Forbidden                    401, 403
BodyTimeout, BodyTooLarge                  408, 413
Overloaded                                 `overload_status` with Retry-After
NotReady                                   503 with Retry-After
any other error                            500, without its message
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import DataError, ServerError, plain_fault, shorten
from .batcher import Overloaded
from .judging import UnrecognizedPrompt
from .service import NotReady


class Unauthorized(ServerError):
    """The API key is missing or wrong."""


class Forbidden(ServerError):
    """The request is for a host that the server does not answer to."""


class AmbiguousLength(ServerError):
    """The body has two lengths."""

    def __init__(self) -> None:
        super().__init__("the request has Content-Length and Transfer-Encoding; send one of them")


class BodyTooLarge(ServerError):
    """The body is larger than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body has more than {limit} bytes; send it in several requests")


class BodyTimeout(ServerError):
    """The body did not arrive in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not arrive within {seconds:g} s; send it without pauses")


def add_handlers(app: FastAPI, overload_status: int) -> None:
    """Make the application answer every error in the common form."""
    app.add_exception_handler(DataError, lambda _, error: answer(error))
    app.add_exception_handler(ServerError, lambda _, error: answer(error, overload_status))
    app.add_exception_handler(RequestValidationError, lambda _, error: _invalid_body(error))
    app.add_exception_handler(HTTPException, lambda _, error: _http_error(error))


def answer(error: Exception, overload_status: int = 503) -> Response:
    """Return the answer to a request that failed with this error."""
    message = str(error)
    match error:
        case UnrecognizedPrompt():
            return _response(400, message, param=error.field)
        case DataError():
            return _response(422, message, param=error.field)
        case Unauthorized():
            return _response(401, message, "authentication_error", headers={"WWW-Authenticate": "Bearer"})
        case Forbidden():
            return _response(403, message, "permission_error")
        case AmbiguousLength():
            return _response(400, message, headers={"Connection": "close"})
        case BodyTimeout():
            return _response(408, message, headers={"Connection": "close"})
        case BodyTooLarge():
            return _response(413, message, headers={"Connection": "close"})
        case Overloaded():
            headers = {"Retry-After": str(error.retry_after)}
            return _response(overload_status, message, "overloaded_error", headers=headers)
        case NotReady():
            return _response(503, message, "overloaded_error", headers={"Retry-After": "1"})
        case ServerError():
            return _response(500, message, "server_error")
    return _response(500, f"internal server error: {type(error).__name__}", "server_error")


def _invalid_body(error: Any) -> Response:
    """Report the first error in a body that does not match its protocol."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _response(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if isinstance(first.get("input"), bytes):
        return _response(415, "the body is not sent as JSON; send it with Content-Type: application/json")
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    got = "" if first["type"] == "missing" else f" (got {shorten(first.get('input'))})"
    if first["type"] == "extra_forbidden":
        return _response(422, f"{param}: unknown field; /openapi.json lists the fields", param=param)
    message = plain_fault(first)
    return _response(422, f"{param or 'the body'}: {message[0].lower()}{message[1:]}{got}", param=param)


def _http_error(error: Any) -> Response:
    return _response(error.status_code, str(error.detail), headers=error.headers)


def _response(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    headers: Any = None,
) -> Response:
    """Encode in ASCII, since a message may quote a lone surrogate, which UTF-8 cannot encode."""
    content = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return Response(json.dumps(content), status, headers, "application/json")
