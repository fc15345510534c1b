"""Text Embeddings Inference's /predict, /similarity and /info; rerank.py has its /rerank.

`huggingface_hub.InferenceClient` uses `text_classification` → /predict and `sentence_similarity` → /similarity.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from ...errors import DataError
from ...schema import Prompt
from ..service import CurrentService, Service
from .inputs import LABEL, TEXT, examples, sigmoid

router = APIRouter(tags=["Text Embeddings Inference"])
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "none": lambda reward: reward,
    "sigmoid": sigmoid,
    "softmax": lambda _: 1.0,  # over a single class, as transformers' pipeline computes it
}


class PredictRequest(BaseModel):
    """A text; a pair (prompt, response); or a list of lists of one or two texts."""

    model_config = examples(
        {"inputs": TEXT, "raw_scores": True},
        {"inputs": [["How are you?", "Fine, and you?"], ["How are you?", "No."]], "raw_scores": True},
    )
    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = Field(False, description="true: the reward; false: σ(reward).")
    truncate: bool | None = Field(None, description="Ignored: the model's own settings decide.")
    truncation_direction: str | None = Field(None, description="Ignored.")
    parameters: dict[str, Any] | None = Field(
        None,
        description="`function_to_apply`, instead of raw_scores: none, sigmoid, or softmax, which is 1 for one class. "
        "Hugging Face's clients send it: a single input is answered with a list of lists, as a pipeline does.",
    )

    def function(self) -> Callable[[float], float]:
        """Return what is applied to rewards. Raises `DataError` for an unknown function."""
        name = (self.parameters or {}).get("function_to_apply", None)
        name = ("none" if self.raw_scores else "sigmoid") if name is None else name
        if not isinstance(name, str) or name not in _FUNCTIONS:
            field, hint = "parameters.function_to_apply", "use none, sigmoid or softmax"
            raise DataError("unknown function", field=field, value=name, hint=hint)
        return _FUNCTIONS[name]


class SimilarityInputs(BaseModel):
    """A prompt as `source_sentence`, and its responses as `sentences`."""

    source_sentence: str
    sentences: list[str] = Field(min_length=1)


class SimilarityRequest(BaseModel):
    """A prompt and its responses."""

    model_config = examples({"inputs": {"source_sentence": "How are you?", "sentences": ["Fine, and you?", "No."]}})
    inputs: SimilarityInputs
    parameters: dict[str, Any] = Field({}, description="Ignored.")


@router.post("/predict")
@router.post("/", include_in_schema=False)
async def predict(request: Request, body: PredictRequest, service: CurrentService) -> Any:
    """A list of labels with scores; a list of such lists for several inputs, and for a body with `parameters`."""
    function = body.function()
    single = isinstance(body.inputs, str) or (len(body.inputs) > 0 and isinstance(body.inputs[0], str))
    inputs: Any = [body.inputs] if single else body.inputs
    scores = await service.score_texts(request, [_conversation(texts, service) for texts in inputs])
    answer = [[{"score": function(score.reward), "label": LABEL}] for score in scores]
    return answer[0] if single and body.parameters is None else answer


def _conversation(texts: str | list[str], service: Service) -> tuple[Prompt, str]:
    if isinstance(texts, str) or len(texts) == 1:
        return service.transcript.read(texts if isinstance(texts, str) else texts[0])
    if len(texts) == 2:
        return texts[0], texts[1]
    raise DataError(f"an input has {len(texts)} texts", field="inputs", hint="give one text, or prompt and response")


@router.post("/similarity")
async def similarity(request: Request, body: SimilarityRequest, service: CurrentService) -> list[float]:
    """σ(reward) of each sentence as a response: how much people prefer it, not how similar it is."""
    texts = [(body.inputs.source_sentence, text) for text in body.inputs.sentences]
    return [sigmoid(score.reward) for score in await service.score_texts(request, texts)]


@router.get("/info")
async def info(service: CurrentService) -> dict[str, Any]:
    """The model and the limits of a request."""
    settings, model = service.settings, service.model
    return {
        "model_id": service.name,
        "model_sha": None,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "model_type": {"classifier": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}},
        "max_concurrent_requests": settings.queue_requests,
        "max_input_length": model.encoder.max_length,
        "max_batch_tokens": service.batcher.budget,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_responses,
        "auto_truncate": model.encoder.config.truncation != "error",
        "tokenization_workers": 1,
        "version": version("dmoerm"),
        "sha": None,
        "docker_label": None,
    }
