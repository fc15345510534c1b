"""The remote reward models of OpenRLHF, slime and LLaMA-Factory.

OpenRLHF (`--reward.remote_url http://…/get_reward`) sends one query per request; with several URLs it sends an empty
list to all but one of them. Its sample filter keeps prompts whose mean *score* is within a range of 0 to 1, so
`?activation=sigmoid` maps scores into it. Rewards, which it trains on, stay as they are.

slime (`--rm-type remote_rm --rm-url http://…/remote_rm`) sends one sample per request. `?key=NAME` gives a sample's
number under a name, for `--reward-key NAME`.

LLaMA-Factory: `reward_model_type: api`, `reward_model: http://…/v1/score/evaluation`.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from ...chat.rendered import Transcript, response_text
from ...errors import DataError
from ...schema import Message, Prompt
from ...scores import log_columns
from ..service import CurrentService
from .inputs import PROMPT, TEXT, TURNS, NamedRequest, examples, header, read_rendered, sigmoid

router = APIRouter()


class RewardRequest(BaseModel):
    """Texts as the policy read and wrote them, with special tokens."""

    model_config = examples({"query": [TEXT], "prompts": [PROMPT], "labels": [None]})
    query: list[str] = Field(description="Prompt and response as one text.")
    prompts: list[str] | None = Field(None, description="The prompts; a response is the text after its prompt.")
    labels: list[Any] | None = Field(None, description="Ignored.")

    def texts(self, transcript: Transcript) -> list[tuple[Prompt, str]]:
        """Return the prompts and responses. Raises `DataError` if a query does not contain its prompt."""
        if self.prompts is None:
            return [transcript.read(text) for text in self.query]
        if len(self.prompts) != len(self.query):
            raise DataError(f"{len(self.query)} queries, but {len(self.prompts)} prompts", field="prompts")
        pairs = zip(self.query, self.prompts, strict=True)
        return [(transcript.prompt(prompt), response_text(query, prompt)) for query, prompt in pairs]


class RewardResponse(BaseModel):
    """One number per query; `extra_logs`: name → one number per query, for the trainer's charts."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


@router.post("/get_reward", tags=["OpenRLHF"])
async def get_reward(
    request: Request,
    body: RewardRequest,
    service: CurrentService,
    activation: Literal["none", "sigmoid"] = "none",
    threshold: Annotated[float, Query(allow_inf_nan=False)] = 0.0,
    temperature: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
) -> RewardResponse:
    """Rewards, with capability scores and contributions as logs: 0 where another task's experts scored.

    With `activation=sigmoid`, `scores` are σ((reward − threshold) / temperature); by default with the temperature
    of the response's task.
    """
    scores = await service.score_texts(request, await asyncio.to_thread(body.texts, service.transcript))
    rewards = shares = [score.reward for score in scores]
    if activation == "sigmoid":
        shares = [sigmoid((score.reward - threshold) / (temperature or score.temperature)) for score in scores]
    logs = log_columns(scores, service.model.config.tasks)
    return RewardResponse(rewards=rewards, scores=shares, extra_logs=logs)


class SampleRequest(BaseModel):
    """A prompt as messages or as the policy reads it, and its response."""

    model_config = examples(
        {"prompt": TURNS[:1], "response": "Fine, and you?", "label": None},
        {"prompt": PROMPT, "response": "Fine, and you?<|im_end|>"},
    )
    prompt: str | list[Message]
    response: str
    label: Any = Field(None, description="Ignored.")


@router.post("/remote_rm", tags=["slime"])
async def remote_rm(
    request: Request, body: SampleRequest, service: CurrentService, key: str | None = None
) -> float | dict[str, float]:
    """The reward as a number."""
    prompt = service.transcript.prompt(body.prompt) if isinstance(body.prompt, str) else tuple(body.prompt)
    (score,) = await service.score_texts(request, [(prompt, body.response)])
    return score.reward if key is None else {key: score.reward}


class EvaluationRequest(NamedRequest):
    """Conversations that a chat template has rendered."""

    model_config = examples({"model": "model", "messages": [TEXT]})
    messages: list[str] = Field(min_length=1, description="The texts, each with its response as the last turn.")
    max_length: int | None = Field(None, description="Ignored: the model's own settings decide.")


@router.post("/v1/score/evaluation", tags=["LLaMA-Factory"])
async def evaluation(request: Request, body: EvaluationRequest, service: CurrentService) -> dict[str, Any]:
    """The rewards as `scores`."""
    scores = await service.score_texts(request, await read_rendered(body.messages, service))
    answer = {"object": "score.evaluation", "scores": [score.reward for score in scores]}
    return header("scoreval", service) | answer
