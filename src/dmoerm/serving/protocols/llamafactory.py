"""LLaMA-Factory's reward server (`reward_model_type: api`, `reward_model: http://…/v1/score/evaluation`)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from ..service import CurrentService
from .inputs import TEXT, NamedRequest, examples, header, read_rendered

router = APIRouter(tags=["LLaMA-Factory"])


class EvaluationRequest(NamedRequest):
    """Conversations that a chat template has rendered."""

    model_config = examples({"model": "model", "messages": [TEXT]})
    messages: list[str] = Field(min_length=1, description="The texts, each with its response as the last turn.")
    max_length: int | None = Field(None, description="Ignored: the model's own settings decide.")


@router.post("/v1/score/evaluation")
async def evaluation(request: Request, body: EvaluationRequest, service: CurrentService) -> dict[str, Any]:
    """The rewards as `scores`."""
    scores = await service.score_texts(request, await read_rendered(body.messages, service))
    answer = {"object": "score.evaluation", "scores": [score.reward for score in scores]}
    return header("scoreval", service) | answer
