"""Text Embeddings Inference's /predict, which `huggingface_hub.InferenceClient.text_classification` uses too."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ...schema import Prompt
from ..service import CurrentService, Service
from .examples import PREDICT_REQUESTS
from .vllm import LABEL, sigmoid

router = APIRouter(tags=["Text Embeddings Inference"])


class PredictRequest(BaseModel):
    """A text; a pair (prompt, response); or a list of lists of one or two texts."""

    model_config = ConfigDict(json_schema_extra={"examples": PREDICT_REQUESTS})
    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = Field(False, description="true: the reward; false: σ(reward).")
    truncate: bool | None = Field(None, description="Ignored: the model's own settings decide.")
    truncation_direction: str | None = Field(None, description="Ignored.")
    parameters: dict[str, Any] = Field({}, description="`function_to_apply`: none or sigmoid, instead of raw_scores.")


@router.post("/predict")
@router.post("/", include_in_schema=False)
async def predict(request: Request, body: PredictRequest, service: CurrentService) -> Any:
    """A label with its score; for a list of inputs a list of them."""
    raw = _raw(body)
    single = isinstance(body.inputs, str) or (len(body.inputs) > 0 and isinstance(body.inputs[0], str))
    inputs: Any = [body.inputs] if single else body.inputs
    scores = await service.score_texts(request, [_conversation(texts, service) for texts in inputs])
    rewards = [score.reward if raw else sigmoid(score.reward) for score in scores]
    answer = [[{"score": reward, "label": LABEL}] for reward in rewards]
    return answer[0] if single else answer


def _conversation(texts: str | list[str], service: Service) -> tuple[Prompt, str]:
    texts = [texts] if isinstance(texts, str) else texts
    if len(texts) == 1:
        return service.transcript.read(texts[0])
    if len(texts) == 2:
        return texts[0], texts[1]
    raise DataError(f"an input has {len(texts)} texts", field="inputs", hint="give one text, or prompt and response")


def _raw(body: PredictRequest) -> bool:
    function = body.parameters.get("function_to_apply")
    if function not in (None, "none", "sigmoid"):
        raise DataError(
            "unknown function", field="parameters.function_to_apply", value=function, hint="use none or sigmoid"
        )
    return body.raw_scores if function is None else function == "none"
