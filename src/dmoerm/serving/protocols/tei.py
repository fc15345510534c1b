"""Text Embeddings Inference's /predict, which `huggingface_hub.InferenceClient.text_classification` asks too."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ...schema import Prompt
from ..service import Asked, Service
from .examples import PREDICT_REQUESTS
from .vllm import LABEL, sigmoid

router = APIRouter(tags=["Text Embeddings Inference"])


class PredictRequest(BaseModel):
    """A text; a pair (prompt, response); or a list whose entries are lists of one text or of two."""

    model_config = ConfigDict(json_schema_extra={"examples": PREDICT_REQUESTS})
    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = Field(False, description="true: the reward; false: σ(reward).")
    truncate: bool | None = Field(None, description="Not looked at: the model's own settings say what is cut.")
    truncation_direction: str | None = Field(None, description="Not looked at.")
    parameters: dict[str, Any] = Field({}, description="`function_to_apply`: none or sigmoid, in place of raw_scores.")


@router.post("/predict")
@router.post("/", include_in_schema=False)
async def predict(request: Request, body: PredictRequest, service: Asked) -> Any:
    """One label with its score; for a list of inputs a list of those."""
    raw = _raw(body)
    one = isinstance(body.inputs, str) or (len(body.inputs) > 0 and isinstance(body.inputs[0], str))
    asked: Any = [body.inputs] if one else body.inputs
    scores = await service.score_texts(request, [_conversation(text, service) for text in asked])
    rewards = [score.reward for score in scores]
    if not raw:
        rewards = [sigmoid(reward) for reward in rewards]
    answer = [[{"score": reward, "label": LABEL}] for reward in rewards]
    return answer[0] if one else answer


def _conversation(text: str | list[str], service: Service) -> tuple[Prompt, str]:
    parts = [text] if isinstance(text, str) else text
    if len(parts) == 1:
        return service.transcript.read(parts[0])
    if len(parts) == 2:
        return parts[0], parts[1]
    raise DataError(f"an input has {len(parts)} texts", field="inputs", hint="give one text, or prompt and response")


def _raw(body: PredictRequest) -> bool:
    function = body.parameters.get("function_to_apply")
    if function not in (None, "none", "sigmoid"):
        raise DataError("is not known", field="parameters.function_to_apply", value=function, hint="none or sigmoid")
    return body.raw_scores if function is None else function == "none"
