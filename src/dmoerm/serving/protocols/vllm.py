"""vLLM's /classify and /pooling as it serves a reward model: one number per conversation. verl uses /classify."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ...schema import Message, Prompt
from ...scores import Score
from ..service import CurrentService, Service, conversation_of
from .examples import CONVERSATION_REQUESTS

router = APIRouter(tags=["vLLM"])
LABEL = "REWARD"


class ConversationRequest(BaseModel):
    """A conversation as messages, or texts that a chat template has rendered. The last turn is scored."""

    model_config = ConfigDict(json_schema_extra={"examples": CONVERSATION_REQUESTS})
    model: str | None = Field(None, description="Ignored: a server has one model.")
    input: str | list[str] | None = Field(None, description="Rendered by the model's chat template, or another's.")
    messages: list[Message] | None = Field(None, description="Instead of `input`.")
    use_activation: bool | None = Field(None, description="true: σ(reward); otherwise the reward itself.")
    activation: bool | None = Field(None, description="The older name of `use_activation`.")


@router.post("/classify")
async def classify(request: Request, body: ConversationRequest, service: CurrentService) -> dict[str, Any]:
    """The reward as a classifier's only class."""
    rewards = _rewards(body, await service.score_texts(request, _conversations(body, service)))
    data = [{"index": i, "label": LABEL, "probs": [reward], "num_classes": 1} for i, reward in enumerate(rewards)]
    return _answer("classify", data, request, service)


@router.post("/pooling")
async def pooling(request: Request, body: ConversationRequest, service: CurrentService) -> dict[str, Any]:
    """The reward as a pooled output of width 1."""
    rewards = _rewards(body, await service.score_texts(request, _conversations(body, service)))
    data = [{"index": i, "object": "pooling", "data": [reward]} for i, reward in enumerate(rewards)]
    return _answer("pool", data, request, service)


def _rewards(body: ConversationRequest, scores: Sequence[Score]) -> list[float]:
    activate = body.activation if body.use_activation is None else body.use_activation
    return [sigmoid(score.reward) if activate else score.reward for score in scores]


def _conversations(body: ConversationRequest, service: Service) -> Sequence[tuple[Prompt, str]]:
    if (body.input is None) == (body.messages is None):
        raise DataError("give either input or messages", field="input")
    if body.messages is not None:
        return [conversation_of(body.messages)]
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    if not texts:
        raise DataError("has no texts", field="input", hint="give one or more texts")
    return [service.transcript.read(text) for text in texts]


def _answer(kind: str, data: list[dict[str, Any]], request: Request, service: Service) -> dict[str, Any]:
    tokens = request.state.tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    header = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": service.now()}
    return {**header, "model": service.name, "data": data, "usage": usage}


def sigmoid(reward: float) -> float:
    """Return σ(reward), without overflow."""
    return 0.5 + 0.5 * math.tanh(reward / 2)
