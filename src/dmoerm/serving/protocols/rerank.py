"""POST /rerank in the forms of Cohere (v1, v2), Jina, Voyage, vLLM, Xinference, infinity and Text Embeddings Inference,
and the routes of NVIDIA NIM and DeepInfra.

The query is the prompt, and the documents are its responses. They are ordered by how much people prefer them as
responses, which is not how relevant they are to a search.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from ...errors import DataError
from ..service import CurrentService
from .engines import PairRequest
from .inputs import NamedRequest, examples, header, sigmoid, usage

_TAGS = "Cohere, Jina, Voyage, vLLM, Xinference, infinity, Text Embeddings Inference, NVIDIA, DeepInfra"
router = APIRouter(tags=[*_TAGS.split(", ")])


class TextDocument(BaseModel):
    """A document as an object."""

    text: str


class RerankRequest(NamedRequest):
    """A prompt as `query` with its responses: `documents`, or `texts` in Text Embeddings Inference's form."""

    model_config = examples(
        {"query": "How are you?", "documents": ["Fine.", {"text": "No."}], "top_n": 1, "return_documents": True},
        {"query": "How are you?", "texts": ["Fine, and you?", "No."], "raw_scores": True},
    )
    query: str
    documents: list[str | TextDocument] | None = None
    texts: list[str] | None = Field(None, description="Instead of `documents`: the answer is a list.")
    top_n: int | None = Field(None, ge=0, description="The best of them only; 0 or null: all.")
    top_k: int | None = Field(None, ge=0, description="Voyage's name of `top_n`.")
    return_documents: bool | None = Field(None, description="Whether results have their text; null: yes.")
    return_text: bool = Field(False, description="The same for `texts`.")
    raw_scores: bool | None = Field(None, description="true: the reward. With `documents`: infinity's form.")
    use_activation: bool | None = Field(None, description="vLLM's form: false: the reward. By default σ(reward).")

    def responses(self) -> list[str]:
        """Return the texts to score. Raises `DataError` if there are none, or both forms are given."""
        given = self.texts if self.documents is None else self.documents
        if not given or (self.texts is not None and self.documents is not None):
            raise DataError("give either documents or texts, one or more", field="documents")
        return [each if isinstance(each, str) else each.text for each in given]


class RankingRequest(NamedRequest):
    """A prompt and its responses in NVIDIA's form."""

    model_config = examples({"query": {"text": "How are you?"}, "passages": [{"text": "Fine."}, {"text": "No."}]})
    query: TextDocument
    passages: list[TextDocument] = Field(min_length=1)
    top_k: int | None = Field(None, ge=0, description="The best of them only; 0 or null: all.")


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
@router.post("/infinity/rerank", include_in_schema=False)
async def rerank(request: Request, body: RerankRequest, service: CurrentService) -> Any:
    """The documents, best first, with σ(reward) as their relevance."""
    texts = body.responses()
    scores = await service.score_texts(request, [(body.query, text) for text in texts])
    order = sorted(range(len(texts)), key=lambda index: -scores[index].reward)
    best = order[: body.top_n or body.top_k or None]
    raw = body.raw_scores or body.use_activation is False
    values = [score.reward if raw else sigmoid(score.reward) for score in scores]
    if body.texts is not None:
        return [{"index": i, "score": values[i]} | ({"text": texts[i]} if body.return_text else {}) for i in best]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": values[i]} for i in best]
    if body.return_documents is not False:
        as_texts = body.raw_scores is not None or request.url.path.startswith("/infinity/")
        for result, i in zip(results, best, strict=True):
            result["document"] = texts[i] if as_texts else {"text": texts[i]}
    meta = {
        "api_version": {"version": "2" if request.url.path.startswith("/v2") else "1"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": request.state.tokens, "output_tokens": 0},
    }
    answer = {"object": "rerank", "results": results, "data": results}  # Voyage's client reads `data`
    return header("rerank", service) | answer | {"usage": usage(request), "meta": meta}


@router.post("/v1/ranking")
@router.post("/v1/retrieval/{model:path}/reranking", include_in_schema=False)
async def ranking(request: Request, body: RankingRequest, service: CurrentService) -> dict[str, Any]:
    """NVIDIA NIM's form: the passages, best first, with the reward as their logit."""
    scores = await service.score_texts(request, [(body.query.text, passage.text) for passage in body.passages])
    rankings = [{"index": index, "logit": score.reward} for index, score in enumerate(scores)]
    rankings.sort(key=lambda entry: -entry["logit"])
    return {"rankings": rankings[: body.top_k or None], "usage": usage(request)}


@router.post("/inference/{model:path}", include_in_schema=False)
@router.post("/v1/inference/{model:path}", include_in_schema=False)
async def inference(request: Request, body: PairRequest, service: CurrentService) -> dict[str, Any]:
    """DeepInfra's form: σ(reward) of each document, in order."""
    scores = [sigmoid(score.reward) for score in await service.score_texts(request, body.pairs())]
    return {"scores": scores, "input_tokens": request.state.tokens}
