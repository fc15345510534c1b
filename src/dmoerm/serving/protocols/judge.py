"""POST /v1/chat/completions for clients that ask a language model which response is better, or for a rating.

The templates of their prompts are in `serving/judging.py`; any other conversation is refused, since a reward model
cannot chat.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ...schema import Message
from ..judging import Token, UnrecognizedPrompt, recognize
from ..service import CurrentService
from .examples import JUDGE_REQUESTS
from .inputs import header, usage

router = APIRouter(tags=["OpenAI"])


class ChatRequest(BaseModel):
    """A judge's prompt. Sampling has no effect: the answer is the likeliest one."""

    model_config = ConfigDict(json_schema_extra={"examples": JUDGE_REQUESTS})
    model: str | None = Field(None, description="The model's name; ignored by a server with one model.")
    messages: list[Message] = Field(min_length=1)
    n: int | None = Field(None, ge=1, le=128, description="How many choices; all are the same.")
    logprobs: bool | None = Field(None, description="Whether the answer has the tokens' log probabilities.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Alternatives of each token.")
    stream: bool | None = Field(None, description="Not supported.")
    tools: list[Any] | None = Field(None, description="Not supported.")
    response_format: dict[str, Any] | None = Field(None, description="Only `text` is supported.")

    def check(self) -> None:
        """Raise `UnrecognizedPrompt` if the request needs an answer of another form."""
        form = (self.response_format or {}).get("type", "text")
        for name, given in (("stream", self.stream), ("tools", self.tools), ("response_format", form != "text")):
            if given:
                raise UnrecognizedPrompt("is not supported", field=name, hint="ask for a plain text, all at once")
        if self.top_logprobs and not self.logprobs:
            raise DataError(
                "needs logprobs", field="top_logprobs", value=self.top_logprobs, hint="set logprobs to true"
            )


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest, service: CurrentService) -> dict[str, Any]:
    """The verdict in the form that the client's template asks for."""
    body.check()
    judged = recognize(service.judge_templates, body.messages)
    scores = await service.score_texts(request, judged.conversations)
    tokens = judged.template.answer(scores)
    message = {"role": "assistant", "content": "".join(map(_likeliest, tokens)), "refusal": None}
    logs = {"content": [_token(token, body.top_logprobs or 0) for token in tokens], "refusal": None}
    choice = {"message": message, "logprobs": logs if body.logprobs else None, "finish_reason": "stop"}
    counts = usage(request) | {"completion_tokens": 0}
    choices = [{"index": index, **choice} for index in range(body.n or 1)]
    judge = {"template": judged.name, "rewards": [score.reward for score in scores]}
    answer = {"object": "chat.completion", "choices": choices, "usage": counts, "judge": judge}
    return header("chatcmpl", service) | answer


def _likeliest(token: Token) -> str:
    return max(token, key=lambda text: token[text])


def _token(token: Token, alternatives: int) -> dict[str, Any]:
    """Return a token in OpenAI's form, with the likeliest of its alternatives."""
    entries = [{"token": text, "logprob": log, "bytes": list(text.encode())} for text, log in token.items()]
    entries.sort(key=lambda entry: -entry["logprob"])
    return entries[0] | {"top_logprobs": entries[:alternatives]}
