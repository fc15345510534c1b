"""POST /classify of vLLM (verl uses it), SGLang and infinity, which differ in the fields of their requests."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from ...errors import DataError
from ...schema import Message
from ..service import CurrentService, Service, conversation_of
from .inputs import LABEL, Rendered, TokenIds, header, is_several, read_rendered, sigmoid, usage
from .vllm import ConversationRequest

router = APIRouter(tags=["vLLM", "SGLang", "infinity"])


class ClassifyRequest(ConversationRequest):
    """vLLM's `input` or `messages`; SGLang's `text`, `input_ids` or `conv`; infinity's `input` with `raw_scores`."""

    raw_scores: bool | None = Field(None, description="infinity's form: true: the reward; false: σ(reward).")
    text: str | list[str] | None = Field(None, description="SGLang's form of `input`.")
    input_ids: TokenIds | list[TokenIds] | None = Field(None, description="SGLang's form of token ids.")
    conv: list[list[Message]] | list[Message] | None = Field(None, description="SGLang's form of `messages`.")


@router.post("/classify")
async def classify(request: Request, body: ClassifyRequest, service: CurrentService) -> Any:
    """The reward as a classifier's only class, in the form of the client that sends such a request."""
    if body.conv is not None:
        return await _sglang_conv(request, body.conv, service)
    if (rendered := body.input_ids if body.text is None else body.text) is not None:
        return await _sglang_rendered(request, rendered, service)
    scores = await service.score_texts(request, await body.conversations(service))
    if body.raw_scores is not None:
        values = [score.reward if body.raw_scores else sigmoid(score.reward) for score in scores]
        data: Any = [[{"score": value, "label": LABEL}] for value in values]
        return header("infinity", service) | {"object": "classify", "data": data, "usage": usage(request)}
    rewards = body.activated(scores)
    data = [{"index": i, "label": LABEL, "probs": [reward], "num_classes": 1} for i, reward in enumerate(rewards)]
    counts = usage(request) | {"completion_tokens": 0, "prompt_tokens_details": None}
    return header("classify", service) | {"data": data, "usage": counts}


async def _sglang_rendered(request: Request, rendered: Rendered, service: Service) -> Any:
    rewards = [score.reward for score in await service.score_texts(request, await read_rendered(rendered, service))]
    return _embeddings(rewards, single=not is_several(rendered))


async def _sglang_conv(request: Request, conv: list[list[Message]] | list[Message], service: Service) -> Any:
    if not conv:
        raise DataError("has no conversation", field="conv", hint="give one or more lists of messages")
    single = isinstance(conv[0], Message)
    talks: Any = [conv] if single else conv
    scores = await service.score_texts(request, [conversation_of(talk) for talk in talks])
    return _embeddings([score.reward for score in scores], single)


def _embeddings(rewards: list[float], single: bool) -> Any:
    """Return SGLang's answer: a reward model's output is an embedding of width 1."""
    answer = [{"embedding": [reward], "meta_info": {"id": uuid.uuid4().hex}} for reward in rewards]
    return answer[0] if single else answer
