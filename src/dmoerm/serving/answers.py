"""Errors as answers: every error is sent as `{"error": {message, type, param, code}}`.

DataError, a body of the wrong form    422; 400 if it is not JSON, 415 if its content type is not JSON
Refusal                                its own status
any other ServerError                  500 with its message
any other error                        500, without its message, which may contain a text
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import DataError, ServerError, plain_fault, shorten


class Refusal(ServerError):
    """A request that is refused with a status of its own.

    Args:
        kind: the error's `type` in the answer, as in OpenAI's API.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers or {}


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
