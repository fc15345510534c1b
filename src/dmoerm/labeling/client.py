"""Send questions to a judge over the OpenAI chat protocol, and classify its errors.

    429, 5xx, timeouts, lost connections       retried by the `openai` client: backoff, jitter, `Retry-After`
    a body that is not a chat completion       retried here
    400, 422 (for example a text too long)     this call fails, permanently
    401, 403, 404, exhausted quota,
    a request field that is not supported      the run ends with a `LabelingError`

The retries of the `openai` library suffice, so this module adds no retry library. The API key is read from the
environment; it appears in no message, error or record.
"""

from __future__ import annotations

import os
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, LabelingError, shorten
from .prompt import answer_schema
from .store import JudgeAnswer
from .verdict import Token

try:
    import openai
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion
except ModuleNotFoundError:
    raise ConfigError("labeling requires the openai package; run pip install '.[label]' in dmoerm's folder") from None

KEY_VARIABLE = "OPENAI_API_KEY"
RESERVED_FIELDS = ("model", "messages", "stream", "n")
"""Fields of a request that `Endpoint.request_fields` cannot set."""

_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
_SECRET = re.compile(r"\b(?:sk|key|tok)-[\w*.-]{4,}|(?i:bearer)\s+\S+")
_MAX_INVALID_BODIES = 3
_FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
_FAILS_ONE_CALL = (openai.BadRequestError, openai.UnprocessableEntityError)
_UNSUPPORTED = re.compile(
    r"unsupported|(?:not|n't) (?:be )?(?:supported?|allowed|permitted|recogni[sz]ed)|unrecogni[sz]ed|unknown|unexpected"
    r"|extra (?:fields|inputs)",
    re.I,
)
_REMOVE_FIELD = {
    "max_tokens": "pass --request-field max_completion_tokens=N, which replaces max_tokens",
    "temperature": "leave it out with --request-field temperature=null",
    "logprobs": "pass --no-logprobs",
    "top_logprobs": "pass --no-logprobs",
    "response_format": "pass --no-schema",
}


class UnansweredError(Exception):
    """The endpoint does not answer after all attempts; a later run sends the question again."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint and the settings of its requests.

    Attributes:
        base_url: URL of the endpoint, such as ``https://api.openai.com/v1``.
        model: name of the model at the endpoint.
        key_variable: environment variable that holds the API key.
        prompt_price, completion_price: price of a million tokens, in any currency.
        schema: constrain the answer to a JSON schema (`response_format`).
        logprobs: request token log-probabilities, from which soft labels are computed.
        max_tokens: limit of an answer in tokens; None selects 16 plus 24 per capability, or no `max_tokens` at all if
            `request_fields` contains `max_completion_tokens`.
        temperature: sampling temperature.
        request_fields: top-level fields that are added to each request and replace fields of the same name; a field
            with the value None is left out.
        timeout: seconds until an attempt is abandoned.
        retries: attempts after the first.

    Raises:
        ConfigError: `request_fields` contains one of `RESERVED_FIELDS`.
    """

    base_url: str
    model: str
    key_variable: str = KEY_VARIABLE
    prompt_price: float = 0.0
    completion_price: float = 0.0
    schema: bool = True
    logprobs: bool = True
    max_tokens: int | None = None
    temperature: float = 0
    request_fields: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    retries: int = 8

    def __post_init__(self) -> None:
        for name in RESERVED_FIELDS:
            if name in self.request_fields:
                raise ConfigError(f"the request field {name!r} cannot be set; dmoerm sets it")

    def request(self, messages: Any, capabilities: Sequence[str]) -> dict[str, Any]:
        """Return the JSON body of a request. The call's key is a hash of it, so that settings are never mixed."""
        temperature = int(self.temperature) if float(self.temperature).is_integer() else self.temperature
        body: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": temperature}
        if self.max_tokens is not None or self.request_fields.get("max_completion_tokens") is None:
            body["max_tokens"] = self.max_tokens or 16 + 24 * len(capabilities)
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": 5}
        if self.schema:
            schema = {"name": "verdict", "strict": True, "schema": answer_schema(capabilities)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body |= self.request_fields
        return {name: value for name, value in body.items() if value is not None}

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the price of the tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


def token_limit(request: Mapping[str, Any]) -> int | None:
    """Return the most completion tokens that a request allows; None if it sets no limit."""
    return min((request[name] for name in _TOKEN_LIMITS if isinstance(request.get(name), int)), default=None)


class JudgeClient:
    """Sends requests to an endpoint. Use it as an asynchronous context manager.

    Raises:
        ConfigError: the URL or the API key is invalid.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._key = os.environ.get(endpoint.key_variable, "")
        self._accepted = False  # whether the endpoint has accepted a request with these fields
        _check_url(endpoint.base_url)
        if not (self._key.isascii() and (self._key + " ").isprintable()):
            raise ConfigError(f"${endpoint.key_variable} contains characters that an HTTP header cannot contain")
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=self._key or "none",
            timeout=endpoint.timeout,
            max_retries=endpoint.retries,
        )

    async def __aenter__(self) -> JudgeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, request: dict[str, Any]) -> JudgeAnswer:
        """Send a request and return its answer.

        Raises:
            UnansweredError: all attempts failed.
            LabelingError: no call to this endpoint can succeed.
        """
        start, attempts, body = time.monotonic(), 0, ""
        fields = {name: value for name, value in request.items() if name not in ("model", "messages")}
        for _ in range(_MAX_INVALID_BODIES):
            try:
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=request["model"], messages=request["messages"], extra_body=fields
                )
            except openai.APIError as error:
                self._raise_unless_failed(error, fields)
                return JudgeAnswer("failed", reason=self.scrub(error), attempts=attempts + 1)
            attempts += 1 + raw.retries_taken
            try:
                answer = self._answer(raw.parse(), time.monotonic() - start, attempts)
            except (ValueError, TypeError, AttributeError, IndexError, KeyError, openai.APIError):
                body = shorten(raw.text)
                continue
            self._accepted = True
            return answer
        raise UnansweredError(f"the endpoint's responses are not chat completions (got {body})")

    def _answer(self, completion: ChatCompletion, seconds: float, attempts: int) -> JudgeAnswer:
        choice = completion.choices[0]
        usage = completion.usage
        spent = [max(int(n), 0) for n in (usage.prompt_tokens, usage.completion_tokens)] if usage else [0, 0]
        statistics = {
            "prompt_tokens": spent[0],
            "completion_tokens": spent[1],
            "cost": self.endpoint.cost(*spent),
            "seconds": seconds,
            "attempts": attempts,
        }
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return JudgeAnswer("refused", reason=str(choice.message.refusal or "content filter"), **statistics)
        content = (choice.logprobs and choice.logprobs.content) or ()
        tokens = tuple(
            Token(str(token.token), {str(top.token): float(top.logprob) for top in token.top_logprobs})
            for token in content
        )
        text = choice.message.content or ""
        if not isinstance(text, str):  # the openai library does not validate types
            raise TypeError("the content is not a text")
        reason = "the answer reached the token limit" if choice.finish_reason == "length" else None
        return JudgeAnswer("answered", text, tokens, reason, **statistics)

    def _raise_unless_failed(self, error: openai.APIError, fields: Mapping[str, Any]) -> None:
        """Raise the error that fits; return if only this call fails."""
        reason = self.scrub(error)
        if (name := self._unsupported_field(error, fields)) is not None:
            hint = _REMOVE_FIELD.get(name, f"remove --request-field {name}")
            raise LabelingError(
                f"{self.endpoint.base_url} rejects the request field {name!r}: {reason}; {hint}"
            ) from None
        if isinstance(error, _FAILS_ONE_CALL):
            return
        if isinstance(error, _FATAL):
            key = f"; check the key in ${self.endpoint.key_variable}" if error.status_code in (401, 403) else ""
            raise LabelingError(f"{self.endpoint.base_url}: {reason}{key}") from None
        if isinstance(error, openai.RateLimitError) and error.code == "insufficient_quota":
            raise LabelingError(f"{self.endpoint.base_url}: {reason}") from None
        raise UnansweredError(reason) from None

    def _unsupported_field(self, error: openai.APIError, fields: Mapping[str, Any]) -> str | None:
        """Return the request field that the endpoint does not support, if that is what the error says.

        After one accepted request all fields are known to be supported.
        """
        text = str(error)
        rejects = isinstance(error, (*_FAILS_ONE_CALL, openai.PermissionDeniedError))
        if self._accepted or not rejects or not (_UNSUPPORTED.search(text) or "unsupported" in str(error.code)):
            return None
        if (parameter := str(error.param).split(".")[0]) in fields:
            return parameter
        return next((name for name in fields if re.search(rf"\b{re.escape(name)}\b", text)), None)

    def scrub(self, error: Exception) -> str:
        """Return the error's text and its cause in one line, without the key."""
        cause = f" {error.__cause__}" if isinstance(error, openai.APIConnectionError) and error.__cause__ else ""
        hint = f" (--timeout {self.endpoint.timeout:g})" if isinstance(error, openai.APITimeoutError) else ""
        text = " ".join(f"{error}{cause}{hint}".split())
        if self._key:
            text = text.replace(self._key, "***")
        return _SECRET.sub("***", text)[:500]


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"base_url must be an http:// or https:// URL (got {url!r})")
