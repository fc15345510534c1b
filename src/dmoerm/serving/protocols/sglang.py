"""SGLang's POST /v1/embeddings as reward clients read it: verl with `rollout.name=sglang` uses it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from ..service import CurrentService
from .inputs import TEXT, NamedRequest, Rendered, examples, header, read_rendered, usage

router = APIRouter(tags=["SGLang"])


class EmbeddingRequest(NamedRequest):
    """Conversations that a chat template has rendered, as texts or as the model's token ids."""

    model_config = examples({"input": TEXT})
    input: Rendered


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest, service: CurrentService) -> dict[str, Any]:
    """The reward as an embedding of width 1."""
    scores = await service.score_texts(request, await read_rendered(body.input, service))
    data = [{"object": "embedding", "embedding": [score.reward], "index": i} for i, score in enumerate(scores)]
    return header("embd", service) | {"data": data, "usage": usage(request)}
