"""The project's own protocol: everything that the model computes for every response."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ...message import Message, Tool
from ...schema import parse_query
from ...scores import Score, unbound_reward
from ..service import CurrentService
from .inputs import NamedRequest, examples

router = APIRouter(tags=["dmoerm"])
_SCORE = {"task": "chitchat", "route": {"chitchat": 0.98, "objective_qa": 0.02}, "temperature": 1.2, "truncated": False}
_FIRST: Any = {"reward": 0.8, "capabilities": {"empathy": 1.3, "proactivity": 0.4}, "uncertainty": 0.45}
_FIRST |= {"contributions": {"empathy": 0.5, "proactivity": 0.1, "per_task": 0.2}}
_SECOND: Any = {"reward": -0.9, "capabilities": {"empathy": -1.1, "proactivity": -0.7}, "uncertainty": 0.2}
_SECOND |= {"contributions": {"empathy": -0.4, "proactivity": -0.2, "per_task": -0.3}}
_RESPONSES = ["Oh no, I am so sorry! What happened?", "The exam took place."]
_PROMPT = [{"role": "user", "content": "I failed my exam."}]
_REQUEST: Any = {"items": [{"prompt": _PROMPT, "responses": _RESPONSES, "task": None}]}
_ITEM = {"scores": [_SCORE | _FIRST, _SCORE | _SECOND], "win_probabilities": [[0.5, 0.805], [0.195, 0.5]]}
_ANSWER: Any = {"model": "demo", "items": [{"id": "6a0b7c1e5d2f4a39"} | _ITEM], "usage": {"tokens": 41}}


class ScoreItem(BaseModel):
    """A prompt and the responses to score."""

    model_config = ConfigDict(extra="forbid")
    id: str | None = Field(None, description="Returned in the answer; derived from the content if missing.")
    prompt: str | list[Message] = Field(description="A text, or a conversation up to the user's or a tool's turn.")
    responses: list[str] = Field(min_length=1, description="One or more texts.")
    task: str | None = Field(None, description="The task; null: the router decides.")
    tools: list[Tool] | None = Field(None, description="Definitions of the tools that the assistant can call.")


class ScoreRequest(NamedRequest):
    """Prompts and their responses."""

    model_config = examples(_REQUEST, _REQUEST | {"weights": {"empathy": 2}}) | ConfigDict(extra="forbid")
    items: list[ScoreItem] = Field(min_length=1, max_length=1024)
    weights: dict[str, float] | None = Field(
        None,
        description="Capability → weight in the rewards, from −10 to 10; 1 for those that are not given. No effect on "
        "items without a score of the capability.",
    )
    win_probabilities: bool = Field(True, description="Whether to compare all pairs of responses to a prompt.")


class ItemScores(BaseModel):
    """The scores of one prompt's responses, in order."""

    id: str
    scores: list[Score]
    win_probabilities: list[list[float]] | None = Field(description="[i][j]: probability that people prefer i to j.")


class ScoreAnswer(BaseModel):
    """The items, in order."""

    model_config = examples(_ANSWER)
    model: str
    items: list[ItemScores]
    usage: dict[str, int]


@router.post("/v1/score", response_model=ScoreAnswer)
async def score(request: Request, body: ScoreRequest, service: CurrentService) -> Response:
    """Rewards, routes, capability scores, contributions, uncertainty and win probabilities."""
    queries = [parse_query(item.model_dump(exclude_none=True)) for item in body.items]
    scored = await service.score(request, queries, body.weights)
    compared = body.win_probabilities

    def answer() -> Response:  # takes half a second for a thousand responses, so other requests need the event loop
        items = [
            ItemScores(id=query.id, scores=scores, win_probabilities=win_probabilities(scores) if compared else None)
            for query, scores in zip(queries, scored, strict=True)
        ]
        whole = ScoreAnswer(model=service.name, items=items, usage={"tokens": request.state.tokens})
        return Response(whole.model_dump_json(), media_type="application/json")

    return await asyncio.to_thread(answer)


def win_probabilities(scores: Sequence[Score]) -> list[list[float]]:
    """Return for [i][j] the calibrated probability that people prefer response i to response j."""
    rewards = np.array([unbound_reward(score.reward) for score in scores])
    temperatures = np.array([score.temperature for score in scores])
    with np.errstate(invalid="ignore"):  # inf − inf of two empty responses
        margins = np.subtract.outer(rewards, rewards)
    margins[np.equal.outer(rewards, rewards)] = 0
    return (0.5 + 0.5 * np.tanh(margins / temperatures[:, None] / 2)).tolist()
