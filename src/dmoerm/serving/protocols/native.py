"""Our own protocol: everything that the model says of every response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...schema import Message, parse_query
from ...scores import Score
from ..service import Asked
from .examples import SCORE_REQUEST, SCORE_RESPONSE

router = APIRouter(tags=["dmoerm"])


class Item(BaseModel):
    """One prompt and the responses to score."""

    id: str | None = Field(None, description="Comes back in the answer; made from the content where there is none.")
    prompt: str | list[Message] = Field(description="A text, or a conversation whose last turn is the user's.")
    responses: list[str] = Field(min_length=1, description="One or more texts.")
    task: str | None = Field(None, description="Skips the router; null: it decides.")


class ScoreRequest(BaseModel):
    """Prompts and their responses."""

    model_config = ConfigDict(json_schema_extra={"examples": [SCORE_REQUEST]})
    model: str | None = Field(None, description="Not looked at: a server has one model.")
    items: list[Item] = Field(min_length=1, max_length=1024)
    win_probabilities: bool = Field(True, description="Whether to compare every two responses to a prompt.")


class ScoreOut(BaseModel):
    """What the model says of one response."""

    reward: float = Field(
        description="Higher is better; about 0 on the mean of the task, standard deviation about 1, within (−20, 20). "
        "−20: the response is empty."
    )
    task: str | None = Field(description="The task whose experts scored; null: the general model.")
    route: dict[str, float] = Field(description="Task → probability, from the prompt alone.")
    capabilities: dict[str, float] = Field(description="Capability → score, in standard deviations.")
    uncertainty: float | None = Field(description="How far the experts disagree; null for the general model.")
    temperature: float = Field(description="σ((reward_a − reward_b) / temperature): how likely a is better than b.")
    truncated: bool = Field(description="Whether part of the prompt or the response was too long to be read.")


class ItemOut(BaseModel):
    """One prompt's scores, in the order of its responses."""

    id: str
    scores: list[ScoreOut]
    win_probabilities: list[list[float]] | None = Field(description="[i][j]: how likely people prefer i to j.")


class ScoreResponse(BaseModel):
    """The items, in order."""

    model_config = ConfigDict(json_schema_extra={"examples": [SCORE_RESPONSE]})
    model: str
    items: list[ItemOut]
    usage: dict[str, int]


@router.post("/v1/score", response_model=ScoreResponse)
async def score(request: Request, body: ScoreRequest, service: Asked) -> dict[str, Any]:
    """Rewards, route, capability scores, uncertainty and win probabilities."""
    rows = [item.model_dump(exclude_none=True) for item in body.items]
    queries = [parse_query(row) for row in rows]
    found = await service.score(request, queries)
    items = [
        {
            "id": query.id,
            "scores": [asdict(one) for one in scores],
            "win_probabilities": win_probabilities(scores) if body.win_probabilities else None,
        }
        for query, scores in zip(queries, found, strict=True)
    ]
    return {"model": service.name, "items": items, "usage": {"tokens": request.state.tokens}}


def win_probabilities(scores: Sequence[Score]) -> list[list[float]]:
    """[i][j]: the calibrated probability that people prefer response i to response j."""
    return [[one.win_probability(other) for other in scores] for one in scores]
