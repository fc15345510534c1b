"""What the synchronous and the asynchronous client share: settings, requests, responses and the retry policy.

    connection errors, timeouts, incomplete responses, 429, 502, 503, 504    retried: backoff, jitter, `Retry-After`
    500 without the server's message: Ray Serve's, when a replica has ended  retried
    400, 413, 422                                                            `DataError` with the server's message
    any other response but 200                                               `ServerError`

Scoring has no side effects, so that a request can be sent again. The default retries span more than half a minute:
clients do not notice the restart of a server.

Connections do not survive `fork`: two processes on one connection read each other's responses. A forked process gets
connections of its own for each client that its parent made.
"""

from __future__ import annotations

import email.utils
import os
import random
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential

from ..errors import ConfigError, DataError, ServerError, plain_fault, shorten
from ..schema import Query
from ..scores import Score

KEY_VARIABLE = "DMOERM_API_KEY"
MODEL_HEADER = "serve_multiplexed_model_id"
"""Names the model beside the body: Ray Serve sends the request to a replica that has it in memory."""
DEFAULT_URL = "http://127.0.0.1:8000"

_TRANSIENT_STATUS, _DATA_STATUS = {429, 502, 503, 504}, {400, 413, 422}
_KEY_HINT = f"check the key in ${KEY_VARIABLE}"
_HINTS = {
    401: _KEY_HINT,
    403: _KEY_HINT,
    404: "check that the URL is that of a reward server, and that it serves the model",
}
_FIRST_WAIT, _MAX_WAIT, _MAX_RETRY_AFTER = 0.25, 16.0, 120.0  # seconds
_BACKOFF = wait_exponential(multiplier=_FIRST_WAIT, max=_MAX_WAIT)


class TransientError(Exception):
    """An attempt that failed and is retried.

    Attributes:
        retry_after: seconds that the server asks to wait; None if it does not say.
        hint: what to check if all attempts fail.
    """

    def __init__(self, reason: str, hint: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.hint, self.retry_after = hint, retry_after


class _ItemContent(BaseModel):
    scores: list[Score]


class _ScoreContent(BaseModel):
    items: list[_ItemContent]


class _ModelEntry(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: str
    tasks: dict[str, list[str]]


class _ModelsContent(BaseModel):
    data: list[_ModelEntry]


_clients: weakref.WeakSet[BaseClient] = weakref.WeakSet()


class BaseClient:
    """The settings of a client. It can be used from any number of threads, and in forked processes.

    Args:
        url: URL of the server, without a path.
        api_key: sent as `Authorization: Bearer KEY`; None selects $DMOERM_API_KEY, and an empty key sends no header.
        model: name of the model; None selects the server's default.
        timeout: seconds until an attempt is abandoned, each for connecting and between parts of the response.
        retries: attempts after the first.
        concurrency: maximum number of requests in flight, over all threads or tasks that use the client.
        transport: an httpx2 transport that replaces the network; forked processes share it.

    Attributes:
        arguments: those with which another client sends the same requests to the same server.

    Raises:
        ConfigError: the URL or the key is invalid.
    """

    _http_type: type[Any]
    _semaphore_type: type[Any]

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 60.0,
        retries: int = 8,
        concurrency: int = 16,
        transport: Any = None,
    ) -> None:
        _check_url(url)
        key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
        if not (key.isascii() and (key + " ").isprintable()):
            raise ConfigError(f"the API key contains characters that an HTTP header cannot contain; {_KEY_HINT}")
        self.url, self.model, self.retries = url.rstrip("/"), model, retries
        self.arguments: dict[str, Any] = {"url": url, "api_key": key, "model": model, "timeout": timeout}
        self.arguments |= {"retries": retries, "transport": transport}
        self._concurrency, self._headers = concurrency, {"Authorization": f"Bearer {key}"} if key else {}
        if model is not None and model.isascii() and model.isprintable():
            self._headers[MODEL_HEADER] = model
        self._connect()
        _clients.add(self)

    def _connect(self) -> None:
        """Create the HTTP client of this process; it connects when it sends the first request."""
        timeout, transport = self.arguments["timeout"], self.arguments["transport"]
        self._slots = self._semaphore_type(self._concurrency)
        self._http = self._http_type(base_url=self.url, headers=self._headers, timeout=timeout, transport=transport)

    # --- attempts --------------------------------------------------------------------------------------------------

    def _retry_policy(self) -> dict[str, Any]:
        """Return the arguments of tenacity's `Retrying` and `AsyncRetrying`."""
        stop, retry = stop_after_attempt(self.retries + 1), retry_if_exception_type(TransientError)
        return {"stop": stop, "retry": retry, "wait": wait_seconds, "reraise": True}

    def _read(self, response: httpx2.Response) -> Any:
        """Return the content of a response, or raise the error that it stands for."""
        where, status = str(response.request.url), response.status_code
        reason = f"{where}: {_reason(response)}"
        if status in _TRANSIENT_STATUS or (status == 500 and _message(response) is None):
            raise TransientError(reason, "the server is busy or starting", _retry_after(response))
        if status in _DATA_STATUS:
            raise DataError(reason)
        if status != 200:
            raise ServerError(f"{reason}; {_HINTS.get(status, 'see the log of the server')}")
        try:
            return response.json()
        except ValueError:
            raise ServerError(
                f"{where}: the response is not JSON (got {shorten(response.text)}); check the URL"
            ) from None

    def _send_error(self, request: httpx2.Request, error: httpx2.RequestError) -> Exception:
        """Return the error for a request without a response."""
        reason = f"{request.url}: {type(error).__name__}: {_line(error)}"
        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
            return ServerError(f"{reason}; the request cannot be sent")
        return TransientError(reason, "check that the server is running")

    def _give_up(self, error: TransientError) -> ServerError:
        attempts = f"{self.retries + 1} attempt{'s' if self.retries else ''}"
        return ServerError(f"{error} (after {attempts}); {error.hint}")

    # --- requests and their responses ------------------------------------------------------------------------------

    def _score_body(self, queries: Sequence[Query]) -> dict[str, Any]:
        items = [query.model_dump(include={"id", "prompt", "responses", "task", "tools"}) for query in queries]
        return {"model": self.model, "items": items, "win_probabilities": False}

    def _scores(self, queries: Sequence[Query], content: Any) -> list[list[Score]]:
        scores = [item.scores for item in self._parsed(_ScoreContent, content).items]
        expected, received = [len(query.responses) for query in queries], list(map(len, scores))
        if received != expected:
            message = f"the server returned {received} scores for {expected} responses"
            raise ServerError(f"{self.url}: {message}; this is an error of the server")
        return scores

    def _models(self, content: Any) -> dict[str, dict[str, list[str]]]:
        return {entry.id: entry.tasks for entry in self._parsed(_ModelsContent, content).data}

    def _tasks_of(self, models: Mapping[str, dict[str, list[str]]]) -> dict[str, list[str]]:
        """Return the tasks of the client's model, with their capabilities."""
        if self.model not in (None, *models):
            known = ", ".join(models)
            raise ConfigError(f"{self.url} has no model {self.model!r}; use one of {known}, or None for the first")
        return models[self.model or next(iter(models))]

    def _parsed(self, kind: type[Any], content: Any) -> Any:
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ServerError(
                f"{self.url}: the response is not that of a reward server: "
                f"{field}: {plain_fault(first)} (got {shorten(content)})"
            ) from None


def _connect_in_child() -> None:
    """Replace what forked processes must not share: connections, and semaphores that a thread of the parent holds."""
    for client in list(_clients):
        client._connect()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_connect_in_child)


def wait_seconds(state: RetryCallState) -> float:
    """Return the pause before the next attempt: the server's `Retry-After`, or exponential backoff with jitter."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, TransientError) and error.retry_after is not None:
        return min(error.retry_after, _MAX_RETRY_AFTER) * random.uniform(1.0, 1.1)
    return _BACKOFF(state) * random.uniform(0.5, 1.0)


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds in `Retry-After`, a number or a date; None without a valid value."""
    header = response.headers.get("Retry-After", "")
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _reason(response: httpx2.Response) -> str:
    """Return the status and the server's message in one line."""
    message = _message(response)
    return f"status {response.status_code}: {_line(response.text if message is None else message)}"


def _message(response: httpx2.Response) -> Any:
    """Return the message of a reward server's error; None if the response is not one, such as that of a proxy."""
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None


def _line(value: object) -> str:
    return " ".join(str(value).split())[:300]


def _check_url(url: str) -> None:
    try:
        valid = url.startswith(("http://", "https://")) and httpx2.URL(url).host
    except httpx2.InvalidURL:
        valid = False
    if not valid:
        raise ConfigError(f"url must be an http:// or https:// URL with a host (got {url!r})")
