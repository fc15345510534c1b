"""OpenRLHF's remote reward model (`--reward.remote_url http://…/get_reward`), which sends one query per request.

With several URLs it sends an empty list to all but one of them. Its sample filter keeps prompts whose mean *score* is
within a range of 0 to 1, so `?activation=sigmoid` maps scores into it. Rewards, which it trains on, stay as they are.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from ...chat.rendered import response_text
from ...errors import DataError
from ...schema import Prompt
from ...scores import log_columns
from ..service import CurrentService, Service
from .inputs import PROMPT, TEXT, examples, sigmoid

router = APIRouter(tags=["OpenRLHF"])


class RewardRequest(BaseModel):
    """Texts as the policy read and wrote them, with special tokens."""

    model_config = examples({"query": [TEXT], "prompts": [PROMPT], "labels": [None]})
    query: list[str] = Field(description="Prompt and response as one text.")
    prompts: list[str] | None = Field(None, description="The prompts; a response is the text after its prompt.")
    labels: list[Any] | None = Field(None, description="Ignored.")


class RewardResponse(BaseModel):
    """One number per query; `extra_logs`: name → one number per query, for the trainer's charts."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


@router.post("/get_reward")
async def get_reward(
    request: Request,
    body: RewardRequest,
    service: CurrentService,
    activation: Literal["none", "sigmoid"] = "none",
    threshold: Annotated[float, Query(allow_inf_nan=False)] = 0.0,
    temperature: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
) -> RewardResponse:
    """Rewards, with capability scores as logs: 0 where another task's experts scored.

    With `activation=sigmoid`, `scores` are σ((reward − threshold) / temperature); by default with the temperature
    of the response's task.
    """
    scores = await service.score_texts(request, await asyncio.to_thread(_texts, body, service))
    rewards = [score.reward for score in scores]
    logs = log_columns(scores, service.model.config.tasks)
    if activation == "none":
        return RewardResponse(rewards=rewards, scores=rewards, extra_logs=logs)
    shares = [sigmoid((score.reward - threshold) / (temperature or score.temperature)) for score in scores]
    return RewardResponse(rewards=rewards, scores=shares, extra_logs=logs)


def _texts(body: RewardRequest, service: Service) -> list[tuple[Prompt, str]]:
    if body.prompts is None:
        return [service.transcript.read(text) for text in body.query]
    if len(body.prompts) != len(body.query):
        raise DataError(f"{len(body.query)} queries, but {len(body.prompts)} prompts", field="prompts")
    return [
        (service.transcript.prompt(prompt), response_text(query, prompt))
        for query, prompt in zip(body.query, body.prompts, strict=True)
    ]
