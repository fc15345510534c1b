"""SageMaker's routes: GET /ping, and POST /invocations, which accepts the requests of the other protocols."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from ...errors import DataError
from ..service import CurrentApplication, CurrentService
from .classify import ClassifyRequest, classify
from .native import ScoreRequest, score
from .openrlhf import RewardRequest, get_reward
from .rerank import RerankRequest, rerank
from .slime import SampleRequest, remote_rm
from .tei import PredictRequest, predict
from .vllm import PairRequest
from .vllm import score as score_pairs

router = APIRouter(tags=["SageMaker"])
_CLASSIFIED = ("messages", "input", "prompt_token_ids", "text", "input_ids", "conv")
_BY_FIELDS: dict[tuple[str, ...], tuple[type[BaseModel], Callable[..., Awaitable[Any]]]] = {
    ("items",): (ScoreRequest, score),
    ("text_1", "text_2"): (PairRequest, score_pairs),
    ("query", "documents"): (RerankRequest, rerank),
    ("query", "texts"): (RerankRequest, rerank),
    ("query",): (RewardRequest, get_reward),
    ("prompt", "response"): (SampleRequest, remote_rm),
    ("inputs",): (PredictRequest, predict),
    **{(name,): (ClassifyRequest, classify) for name in _CLASSIFIED},
}


@router.get("/ping")
async def ping(service: CurrentApplication) -> Response:
    """200 once the model is loaded and warm, 503 before."""
    return Response(status_code=200 if service.ready else 503)


@router.post("/invocations")
async def invocations(request: Request, body: dict[str, Any], service: CurrentService) -> Any:
    """The answer of the protocol that has the request's fields."""
    for fields, (form, route) in _BY_FIELDS.items():
        if all(name in body for name in fields):
            try:
                parsed = form.model_validate(body)
            except ValidationError as error:
                raise RequestValidationError(error.errors()) from None
            return await route(request, parsed, service)
    hint = "send a request of /v1/score, /classify, /score, /rerank, /get_reward, /remote_rm or /predict"
    raise DataError("the request has the fields of no protocol", value=sorted(body), hint=hint)
