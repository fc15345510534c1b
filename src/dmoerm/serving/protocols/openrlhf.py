"""OpenRLHF's remote reward model (`--reward.remote_url http://…/get_reward`): one query a request, as a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ...rendered import response_text
from ...schema import Prompt
from ...scores import Score
from ..service import EMPTY_REWARD, Asked, Service
from .examples import REWARD_REQUEST

router = APIRouter(tags=["OpenRLHF"])


class RewardRequest(BaseModel):
    """Texts as the policy read and wrote them, special tokens kept."""

    model_config = ConfigDict(json_schema_extra={"examples": [REWARD_REQUEST]})
    query: list[str] = Field(min_length=1, description="Prompt and response as one text.")
    prompts: list[str] | None = Field(None, description="The prompts, where a response begins is what follows them.")
    labels: list[Any] | None = Field(None, description="Not looked at.")


class RewardResponse(BaseModel):
    """One number a query; `extra_logs`: name → one number a query, for the trainer's charts."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


@router.post("/get_reward")
async def get_reward(request: Request, body: RewardRequest, service: Asked) -> RewardResponse:
    """Rewards, with capability scores as logs: 0 where another task's experts scored."""
    found = await service.rewards(request, _texts(body, service))
    least = min([EMPTY_REWARD, *(score.reward for score in found if score is not None)])
    rewards = [least if score is None else score.reward for score in found]
    return RewardResponse(rewards=rewards, scores=rewards, extra_logs=logs(service.batcher.model.config.tasks, found))


def _texts(body: RewardRequest, service: Service) -> list[tuple[Prompt, str]]:
    if body.prompts is None:
        return [service.transcript.read(text) for text in body.query]
    if len(body.prompts) != len(body.query):
        raise DataError(f"{len(body.query)} queries, but {len(body.prompts)} prompts", field="prompts")
    return [
        (service.transcript.prompt(prompt), response_text(query, prompt))
        for query, prompt in zip(body.query, body.prompts, strict=True)
    ]


def logs(tasks: Mapping[str, Sequence[str]], scores: Sequence[Score | None]) -> dict[str, list[float]]:
    """The same names for every batch, as OpenRLHF joins them over batches."""
    names = [f"{task}/{name}" for task, capabilities in tasks.items() for name in capabilities]
    found = {n: [0.0] * len(scores) for n in ("uncertainty", *(f"task/{task}" for task in tasks), *names)}
    for place, score in enumerate(scores):
        if score is None or score.task is None:
            continue
        found["uncertainty"][place] = score.uncertainty or 0.0
        found[f"task/{score.task}"][place] = 1.0
        for name, value in score.capabilities.items():
            found[f"{score.task}/{name}"][place] = value
    return found
