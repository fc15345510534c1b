"""What is asked of a reward server, how an answer is read, and what is tried again.

    connection errors, timeouts, broken responses, 429, 502, 503, 504    tried again: backoff, jitter, `Retry-After`
    400, 413, 422                                                        `DataError` with the server's reason
    any other answer but 200                                             `ServerError`

Scoring changes nothing on a server, so that a request may be sent again: one that is killed and started again within
the tries' time (half a minute and more) costs a caller nothing but the wait.

All of it is generators that yield what to wait for, a request to send or seconds to sleep, so that `Client` and
`AsyncClient` differ in the waiting alone.
"""

from __future__ import annotations

import email.utils
import itertools
import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError, DataError, ServerError, shorten
from ..schema import Query
from ..scores import Score

KEY_VARIABLE = "DMOERM_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
RESPONSES, CHARACTERS = 128, 32_000
"""Most responses of one request; and most characters, but for a prompt and a response that by themselves have more."""

_AGAIN, _BAD_DATA = {429, 502, 503, 504}, {400, 413, 422}
_HINTS = {
    401: f"is the key in {KEY_VARIABLE} right?",
    403: f"is the key in {KEY_VARIABLE} right?",
    404: "is this a reward server, and does it have that model?",
}
_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_ASKED = 0.25, 16.0, 120.0  # seconds; the last: of a server's `Retry-After`

T = TypeVar("T")
Outcome = httpx2.Response | httpx2.RequestError | None
Steps = Generator[httpx2.Request | float, Outcome, T]
"""Yields requests, and is sent the response to each or its error; yields seconds to sleep; returns what was asked."""


class _Item(BaseModel):
    scores: list[Score]


class _Answer(BaseModel):
    items: list[_Item]


class _Card(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: str
    tasks: dict[str, list[str]]


class _Cards(BaseModel):
    data: list[_Card]


class Asking:
    """What both clients say and understand."""

    def __init__(self, url: str, api_key: str | None, model: str | None, timeout: float, retries: int) -> None:
        _check_url(url)
        key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
        if not (key.isascii() and (key + " ").isprintable()):
            raise ConfigError(f"the API key has characters that no header can hold; check {KEY_VARIABLE}")
        self.url, self.model, self.retries = url.rstrip("/"), model, retries
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._settings: dict[str, Any] = {"base_url": self.url, "headers": headers, "timeout": timeout}
        self._http: Any

    def _ask(self, method: str, path: str, body: Any = None) -> Steps[Any]:
        request, reason = self._http.build_request(method, path, json=body), ""
        for tried in range(self.retries + 1):
            outcome = yield request
            if isinstance(outcome, httpx2.Response) and outcome.status_code not in _AGAIN:
                return self._read(outcome, path)
            reason = self._reason(outcome)
            if isinstance(outcome, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
                break  # the request cannot be sent at all
            if tried < self.retries:
                yield _pause(tried, outcome)
        raise ServerError(f"{self.url}{path}: {reason}; tried {self.retries + 1} times; is the server running?")

    def _read(self, response: httpx2.Response, path: str) -> Any:
        where, status = f"{self.url}{path}", response.status_code
        if status in _BAD_DATA:
            raise DataError(f"{where}: {self._reason(response)}")
        if status != 200:
            hint = _HINTS.get(status, "see the server's log")
            raise ServerError(f"{where}: {self._reason(response)}; {hint}")
        try:
            return response.json()
        except ValueError:
            raise ServerError(f"{where}: the answer is no JSON (got {shorten(response.text)}); check the URL") from None

    def _reason(self, outcome: Any) -> str:
        """One line: the server's own reason where it gives one."""
        if not isinstance(outcome, httpx2.Response):
            return f"{type(outcome).__name__}: {' '.join(str(outcome).split())[:300]}"
        try:
            reason = outcome.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            reason = outcome.text
        return f"status {outcome.status_code}: {' '.join(str(reason).split())[:300]}"

    def _score(self, queries: Sequence[Query]) -> Steps[list[list[Score]]]:
        items = [query.model_dump(include={"id", "prompt", "responses", "task"}) for query in queries]
        body = {"model": self.model, "items": items, "win_probabilities": False}
        answer = self._parsed(_Answer, (yield from self._ask("POST", "/v1/score", body)))
        scores = [item.scores for item in answer.items]
        asked, found = [len(query.responses) for query in queries], list(map(len, scores))
        if found != asked:
            raise ServerError(f"{self.url}: the answer holds {found} scores for {asked} responses; mend the server")
        return scores

    def _models(self) -> Steps[dict[str, dict[str, list[str]]]]:
        cards = self._parsed(_Cards, (yield from self._ask("GET", "/v1/models")))
        return {card.id: card.tasks for card in cards.data}

    def _parsed(self, kind: type[Any], answer: Any) -> Any:
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ServerError(
                f"{self.url}: the answer is none of a reward server's: {place}: {first['msg']} (got {shorten(answer)})"
            ) from None

    def _ready(self) -> Steps[bool]:
        outcome = yield self._http.build_request("GET", "/ready")
        return isinstance(outcome, httpx2.Response) and outcome.status_code == 200


def chunks(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """The queries in order, in requests within the bounds; one that is beyond them is asked in parts."""
    parts = (part for query in queries for part in _parts(query))
    return _bounded(parts, lambda part: (len(part.responses), _prompt_size(part) + sum(map(len, part.responses))))


def _parts(query: Query) -> Iterator[Query]:
    room = CHARACTERS - _prompt_size(query)
    for responses in _bounded(query.responses, lambda text: (1, len(text)), room):
        yield query.model_copy(update={"responses": tuple(responses)})


def _prompt_size(query: Query) -> int:
    return len(str(query.prompt))


def _bounded(items: Iterable[T], weigh: Callable[[T], tuple[int, int]], room: int = CHARACTERS) -> Iterator[list[T]]:
    """Lists of items in order, each as long as its responses and characters allow; an item beyond them is alone."""
    taken: list[T] = []
    count = size = 0
    for item in items:
        responses, characters = weigh(item)
        if taken and (count + responses > RESPONSES or size + characters > room):
            yield taken
            taken, count, size = [], 0, 0
        taken.append(item)
        count, size = count + responses, size + characters
    if taken:
        yield taken


def joined(queries: Sequence[Query], found: Iterable[list[list[Score]]]) -> Iterator[list[Score]]:
    """One list a query again, from the scores of its `chunks`."""
    scores = (score for chunk in found for part in chunk for score in part)
    for query in queries:
        yield list(itertools.islice(scores, len(query.responses)))


def _check_url(url: str) -> None:
    try:
        fits = url.startswith(("http://", "https://")) and httpx2.URL(url).host
    except httpx2.InvalidURL:
        fits = False
    if not fits:
        raise ConfigError(f"url: must be http:// or https:// and a server's name (got {url!r})")


def _pause(tried: int, outcome: Outcome) -> float:
    """Seconds until the next try: what the server asks for, else twice the last wait, half of it by chance."""
    asked = _retry_after(outcome.headers.get("Retry-After", "")) if isinstance(outcome, httpx2.Response) else None
    if asked is not None:
        return min(asked, _LONGEST_ASKED) * random.uniform(1.0, 1.1)
    return min(_FIRST_WAIT * 2**tried, _LONGEST_WAIT) * random.uniform(0.5, 1.0)


def _retry_after(header: str) -> float | None:
    """Seconds, given as such or as a date; None: not given."""
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
