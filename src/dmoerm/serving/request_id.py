"""The id of the request that is being answered, for its answer and its log lines: `X-Request-ID`, or a new one."""

from __future__ import annotations

import contextvars
import logging
import re
import uuid

HEADER = b"x-request-id"
REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The current request's id; empty outside a request."""

_VALID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def enter_request(given: bytes) -> str:
    """Set and return the current request's id: the client's if it is 1 to 64 letters, digits, `.`, `_` or `-`."""
    value = given.decode() if _VALID.fullmatch(given) else uuid.uuid4().hex
    REQUEST_ID.set(value)
    return value


class RequestIdFilter(logging.Filter):
    """Add the field `request_id` to records that are logged during a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: every record is kept."""
        if request_id := REQUEST_ID.get():
            record.request_id = request_id
        return True
