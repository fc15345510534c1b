"""What the server tells about itself: Prometheus' metrics, log lines, and the id of each request; never a text."""

from __future__ import annotations

import contextvars
import functools
import logging
import re
import uuid
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..scores import Score

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = tuple(2**i for i in range(4, 17))
_REWARDS = (-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
GENERAL = "(general)"

ID_HEADER = "x-request-id"
REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The current request's id; empty outside a request."""
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        ours: Any = {"namespace": "dmoerm", "registry": self.registry}
        counter, gauge = functools.partial(Counter, **ours), functools.partial(Gauge, **ours)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, **ours)

        self.requests = counter("requests", "Answered requests.", ["path", "status"])
        self.latency = histogram("request_seconds", "Time from the first byte to the answer.", _SECONDS, "path")
        self.queue_requests = gauge("queue_requests", "Requests that wait or are being scored.")
        self.queue_tokens = gauge("queue_tokens", "Tokens that wait for a pass.")
        self.queue_expected = gauge("queue_expected_seconds", "Estimated time in which all that waits is scored.")
        self.rate = gauge("tokens_per_second", "Measured rate of recent passes.")
        self.queued = histogram("queue_seconds", "Time from a request's arrival to its first pass.", _SECONDS)
        self.refused = counter("refused", "Requests that a full queue refused.")
        self.left = counter("client_left", "Requests whose client disconnected before the answer.")
        self.batch_tokens = histogram("batch_tokens", "Tokens of a pass.", _TOKENS)
        self.batch_seconds = histogram("batch_seconds", "Duration of a pass.", _SECONDS)
        self.responses = counter("responses", "Scored responses.", ["task"])
        self.empty = counter("empty_responses", "Empty responses among the scored ones.")
        self.truncated = counter("truncated_responses", "Scored responses whose text was truncated.")
        self.reward = histogram("reward", "Rewards of responses that are not empty.", _REWARDS, "task")
        self.confidence = histogram("route_confidence", "Probability of the likeliest task.", _SHARES, "task")

    def scored(self, scores: Sequence[Score]) -> None:
        """Count the scores of one query."""
        task = scores[0].task or GENERAL
        self.responses.labels(task).inc(len(scores))
        for score in scores:
            self.empty.inc(score.empty)
            self.truncated.inc(score.truncated)
            if not score.empty:
                self.reward.labels(task).observe(score.reward)
        self.confidence.labels(task).observe(max(scores[0].route.values(), default=0.0))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def enter_request(given: str) -> str:
    """Set and return the current request's id: the client's if it is 1 to 64 letters, digits, `.`, `_` or `-`."""
    value = given if _VALID_ID.fullmatch(given) else uuid.uuid4().hex
    REQUEST_ID.set(value)
    return value


def add_request_id(record: logging.LogRecord) -> bool:
    """Add the field `request_id` to a record that is logged during a request. Return True: every record is kept."""
    if request_id := REQUEST_ID.get():
        record.request_id = request_id
    return True


class _TextFormatter(logging.Formatter):
    """For terminals: time, message and extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _RECORD)
        return f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()} {fields}".rstrip()


def log_settings(json_logs: bool) -> dict[str, Any]:
    """Return the logging configuration: one line per request and event on standard error."""
    formatter: dict[str, Any] = {"()": _TextFormatter}
    if json_logs:
        formatter = {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
            "reserved_attrs": [*_RECORD],
        }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": [add_request_id]}},
        "loggers": {name: {"handlers": ["stderr"], "level": "INFO"} for name in ("dmoerm", "uvicorn")},
    }
