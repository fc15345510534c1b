"""Send questions to a judge over the OpenAI chat protocol, and classify its errors.

    429, 5xx, timeouts, lost connections       retried by the `openai` client: backoff, jitter, `Retry-After`
    a body that is not a chat completion       retried here
    400, 422 (for example a text too long)     this call fails, permanently
    401, 403, 404, exhausted quota,
    a request field that is not supported      the run ends with a `LabelingError`

The API key is read from $OPENAI_API_KEY; it appears in no message, error or record.
"""

from __future__ import annotations

import os
import re
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from ..errors import ConfigError, LabelingError, shorten
from .prompt import Token
from .questions import Endpoint
from .store import JudgeAnswer

KEY_VARIABLE = "OPENAI_API_KEY"

_SECRET = re.compile(r"\b(?:sk|key|tok)-[\w*.-]{4,}|(?i:bearer)\s+\S+")
_MAX_INVALID_BODIES = 3
_UNSUPPORTED = re.compile(
    r"unsupported|(?:not|n't) (?:be )?(?:supported?|allowed|permitted|recogni[sz]ed)|unrecogni[sz]ed|unknown|unexpected"
    r"|extra (?:fields|inputs)",
    re.I,
)
_INSTEAD = {
    "max_tokens": "pass --request-field max_completion_tokens=N, which replaces max_tokens",
    "top_logprobs": "leave it out with --request-field logprobs=null",
}


class JudgeClient:
    """Sends requests to an endpoint. Use it as an asynchronous context manager.

    Raises:
        ConfigError: the URL or the API key is invalid.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._key = os.environ.get(KEY_VARIABLE, "")
        self._accepted = False  # whether the endpoint has accepted a request with these fields
        try:
            parts = urllib.parse.urlsplit(endpoint.base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(f"base_url must be an http:// or https:// URL (got {endpoint.base_url!r})")
        if not (self._key.isascii() and (self._key + " ").isprintable()):
            raise ConfigError(f"${KEY_VARIABLE} contains characters that an HTTP header cannot contain")
        self._client = openai.AsyncOpenAI(
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
        """Send a request and return its answer; status `unanswered` if all attempts failed.

        Raises:
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
                return JudgeAnswer(self._status(error, fields), reason=self.scrub(error), attempts=attempts + 1)
            attempts += 1 + raw.retries_taken
            try:
                answer = self._answer(raw.parse(), time.monotonic() - start, attempts)
            except (ValueError, TypeError, AttributeError, IndexError, KeyError, openai.APIError):
                body = shorten(raw.text)
                continue
            self._accepted = True
            return answer
        reason = f"the endpoint's responses are not chat completions (got {body})"
        return JudgeAnswer("unanswered", reason=reason, attempts=attempts)

    def _answer(self, completion: ChatCompletion, seconds: float, attempts: int) -> JudgeAnswer:
        choice, usage = completion.choices[0], completion.usage
        prompt = max(int(usage.prompt_tokens), 0) if usage else 0
        written = max(int(usage.completion_tokens), 0) if usage else 0
        usage_of = (prompt, written, self.endpoint.cost(prompt, written), seconds, attempts)
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return JudgeAnswer("refused", None, (), str(choice.message.refusal or "content filter"), *usage_of)
        tokens = tuple(
            Token(str(token.token), {str(top.token): float(top.logprob) for top in token.top_logprobs})
            for token in (choice.logprobs and choice.logprobs.content) or ()
        )
        text = choice.message.content or ""
        if not isinstance(text, str):  # the openai library does not validate types
            raise TypeError("the content is not a text")
        reason = "the answer reached the token limit" if choice.finish_reason == "length" else None
        return JudgeAnswer("answered", text, tokens, reason, *usage_of)

    def _status(self, error: openai.APIError, fields: Mapping[str, Any]) -> str:
        """Return `failed` if only this call fails, `unanswered` if a later one may succeed; else raise."""
        reason, code = self.scrub(error), getattr(error, "status_code", None)
        if (name := self._unsupported_field(error, fields)) is not None:
            given = name in self.endpoint.request_fields
            fix = f"remove --request-field {name}" if given else f"leave it out with --request-field {name}=null"
            hint = _INSTEAD.get(name, fix)
            raise LabelingError(
                f"{self.endpoint.base_url} rejects the request field {name!r}: {reason}; {hint}"
            ) from None
        if code in (401, 403, 404) or (code == 429 and error.code == "insufficient_quota"):
            key = f"; check the key in ${KEY_VARIABLE}" if code in (401, 403) else ""
            raise LabelingError(f"{self.endpoint.base_url}: {reason}{key}") from None
        return "failed" if code in (400, 422) else "unanswered"

    def _unsupported_field(self, error: openai.APIError, fields: Mapping[str, Any]) -> str | None:
        """Return the request field that the endpoint does not support, if that is what the error says.

        After one accepted request all fields are known to be supported.
        """
        text = str(error)
        rejects = getattr(error, "status_code", None) in (400, 403, 422)
        if self._accepted or not rejects or not (_UNSUPPORTED.search(text) or "unsupported" in str(error.code)):
            return None
        if (parameter := str(error.param).split(".")[0]) in fields:
            return parameter
        return next((name for name in fields if re.search(rf"\b{re.escape(name)}\b", text)), None)

    def scrub(self, error: Exception) -> str:
        """Return the error's text and its cause in one line, without the key."""
        cause = f" {error.__cause__}" if isinstance(error, openai.APIConnectionError) and error.__cause__ else ""
        after = f" after {self.endpoint.timeout:g} s" if isinstance(error, openai.APITimeoutError) else ""
        text = " ".join(f"{error}{cause}{after}".split())
        if self._key:
            text = text.replace(self._key, "***")
        return _SECRET.sub("***", text)[:500]
