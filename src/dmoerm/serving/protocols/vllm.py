"""vLLM's /classify and /pooling, as it serves a reward model: one number a conversation. verl asks /classify."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ...schema import Message, Prompt
from ..service import Asked, Service, conversation_of
from .examples import CONVERSATION_REQUESTS

router = APIRouter(tags=["vLLM"])
LABEL = "REWARD"


class ConversationRequest(BaseModel):
    """One conversation as messages; or texts that a chat template has rendered. The last turn is what is scored."""

    model_config = ConfigDict(json_schema_extra={"examples": CONVERSATION_REQUESTS})
    model: str | None = Field(None, description="Not looked at: a server has one model.")
    input: str | list[str] | None = Field(None, description="Rendered by the model's chat template, or another's.")
    messages: list[Message] | None = Field(None, description="In place of `input`.")
    use_activation: bool | None = Field(None, description="true: σ(reward); else the reward itself.")
    activation: bool | None = Field(None, description="The same, as older clients say it.")


@router.post("/classify")
async def classify(request: Request, body: ConversationRequest, service: Asked) -> dict[str, Any]:
    """The reward as a classifier's one class."""
    rewards = await _rewards(request, body, service)
    data = [{"index": i, "label": LABEL, "probs": [reward], "num_classes": 1} for i, reward in enumerate(rewards)]
    return _answer("classify", data, request, service)


@router.post("/pooling")
async def pooling(request: Request, body: ConversationRequest, service: Asked) -> dict[str, Any]:
    """The reward as a pooled output of width 1."""
    rewards = await _rewards(request, body, service)
    data = [{"index": i, "object": "pooling", "data": [reward]} for i, reward in enumerate(rewards)]
    return _answer("pool", data, request, service)


async def _rewards(request: Request, body: ConversationRequest, service: Service) -> list[float]:
    scores = await service.score_texts(request, _conversations(body, service))
    rewards = [score.reward for score in scores]
    activate = body.activation if body.use_activation is None else body.use_activation
    return [sigmoid(reward) for reward in rewards] if activate else rewards


def _conversations(body: ConversationRequest, service: Service) -> Sequence[tuple[Prompt, str]]:
    if (body.input is None) == (body.messages is None):
        raise DataError("give either input or messages", field="input")
    if body.messages is not None:
        return [conversation_of(body.messages)]
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    if not texts:
        raise DataError("holds no text", field="input", hint="give one text or more")
    return [service.transcript.read(text) for text in texts]


def _answer(kind: str, data: list[dict[str, Any]], request: Request, service: Service) -> dict[str, Any]:
    tokens = getattr(request.state, "tokens", 0)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    about = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": service.now()}
    return {**about, "model": service.name, "data": data, "usage": usage}


def sigmoid(reward: float) -> float:
    """σ without overflow."""
    return 0.5 + 0.5 * math.tanh(reward / 2)
