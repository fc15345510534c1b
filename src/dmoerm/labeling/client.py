"""Asking a judge over the OpenAI chat protocol: the request, its answer, and which errors end what.

    429, 5xx, timeouts, lost connections     tried again by the `openai` client: backoff, jitter, `Retry-After`
    a body that is no chat completion        tried again here
    400, 422 (a context too long …)          this call has failed, for good
    401, 403, 404, a used-up quota           the run ends: `LabelingError`

The key comes from the environment; it is in no message, error or record.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, LabelingError
from .prompt import answer_schema
from .store import Answer
from .verdict import Token

try:
    import openai
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion
except ModuleNotFoundError:
    raise ConfigError("asking a judge needs the package openai: pip install 'dmoerm[label]'") from None

KEY_VARIABLE = "OPENAI_API_KEY"
_SECRET = re.compile(r"\b(?:sk|key|tok)-[\w*.-]{4,}|(?i:bearer)\s+\S+")
_TRIES = 3  # of a body that is no chat completion
_FINAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
_THIS_CALL = (openai.BadRequestError, openai.UnprocessableEntityError)


class Unanswered(Exception):
    """No answer after all tries; a later run may ask again."""


@dataclass(frozen=True)
class Endpoint:
    """A judge behind an OpenAI-compatible endpoint.

    Attributes:
        base_url, model: where, and which.
        key_variable: the environment variable that holds the key.
        prompt_price, completion_price: for a million tokens, in any currency.
        schema: hold the answer to a JSON schema (`response_format`).
        logprobs: ask for log-probabilities, from which soft labels come.
        timeout: seconds a try may take.
        retries: tries after the first.
    """

    base_url: str
    model: str
    key_variable: str = KEY_VARIABLE
    prompt_price: float = 0.0
    completion_price: float = 0.0
    schema: bool = True
    logprobs: bool = True
    timeout: float = 120.0
    retries: int = 8

    def request(self, messages: Any, capabilities: Sequence[str]) -> dict[str, Any]:
        """All that is sent, and so what the call's key is made of."""
        found: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": 0}
        found["max_tokens"] = 16 + 24 * len(capabilities)
        if self.logprobs:
            found |= {"logprobs": True, "top_logprobs": 5}
        if self.schema:
            schema = {"name": "verdict", "strict": True, "schema": answer_schema(capabilities)}
            found["response_format"] = {"type": "json_schema", "json_schema": schema}
        return found

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


class Client:
    """Sends requests to an endpoint; use as an asynchronous context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._key = os.environ.get(endpoint.key_variable, "")
        if not endpoint.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url: must start with http:// or https:// (got {endpoint.base_url!r})")
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=self._key or "none",
            timeout=endpoint.timeout,
            max_retries=endpoint.retries,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, request: dict[str, Any]) -> Answer:
        """The answer to a request.

        Raises:
            Unanswered: every try was in vain.
            LabelingError: no call to this endpoint can succeed.
        """
        started, attempts = time.monotonic(), 0
        for _ in range(_TRIES):
            try:
                raw = await self._client.chat.completions.with_raw_response.create(**request)
                attempts += 1 + raw.retries_taken
                completion = raw.parse()
                return self._answer(completion, time.monotonic() - started, attempts)
            except _THIS_CALL as error:
                return Answer("failed", reason=self.scrubbed(error), attempts=attempts + 1)
            except openai.RateLimitError as error:
                if error.code == "insufficient_quota":
                    raise self._final(error) from None
                raise Unanswered(self.scrubbed(error)) from None
            except _FINAL as error:
                raise self._final(error) from None
            except openai.APIError as error:
                raise Unanswered(self.scrubbed(error)) from None
            except (ValueError, TypeError, AttributeError, IndexError, KeyError):
                continue  # a body that is no chat completion
        raise Unanswered("the endpoint's answers are no chat completions")

    def _answer(self, completion: ChatCompletion, seconds: float, attempts: int) -> Answer:
        choice = completion.choices[0]
        usage = completion.usage
        spent = [max(int(n), 0) for n in (usage.prompt_tokens, usage.completion_tokens)] if usage else [0, 0]
        about = {
            "prompt_tokens": spent[0],
            "completion_tokens": spent[1],
            "cost": self.endpoint.cost(*spent),
            "seconds": seconds,
            "attempts": attempts,
        }
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return Answer("refused", reason=str(choice.message.refusal or "content filter"), **about)
        content = (choice.logprobs and choice.logprobs.content) or ()
        tokens = tuple(
            Token(str(token.token), {str(top.token): float(top.logprob) for top in token.top_logprobs})
            for token in content
        )
        text = choice.message.content or ""
        if not isinstance(text, str):  # the client library lets any type through
            raise TypeError("the content is no text")
        return Answer("answered", text, tokens, **about)

    def _final(self, error: openai.APIStatusError) -> LabelingError:
        hint = f"; is the key in ${self.endpoint.key_variable} right?" if error.status_code in (401, 403) else ""
        return LabelingError(f"{self.endpoint.base_url}: {self.scrubbed(error)}{hint}")

    def scrubbed(self, error: Exception) -> str:
        """What the error says, in one line, without the key."""
        text = " ".join(str(error).split())
        if self._key:
            text = text.replace(self._key, "***")
        return _SECRET.sub("***", text)[:500]
