"""POST /rerank in the forms of Cohere (v1, v2), Jina, vLLM, Xinference, infinity and Text Embeddings Inference.

The query is the prompt, and the documents are its responses. They are ordered by how much people prefer them as
responses, which is not how relevant they are to a search.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ..service import CurrentService
from .examples import RERANK_REQUESTS
from .inputs import header, sigmoid, usage

router = APIRouter(tags=["Cohere", "Jina", "vLLM", "Xinference", "infinity", "Text Embeddings Inference"])


class TextDocument(BaseModel):
    """A document as an object."""

    text: str


class RerankRequest(BaseModel):
    """A prompt as `query` with its responses: `documents`, or `texts` in Text Embeddings Inference's form."""

    model_config = ConfigDict(json_schema_extra={"examples": RERANK_REQUESTS})
    model: str | None = Field(None, description="The model's name; ignored by a server with one model.")
    query: str
    documents: list[str | TextDocument] | None = None
    texts: list[str] | None = Field(None, description="Instead of `documents`: the answer is a list.")
    top_n: int | None = Field(None, ge=0, description="The best of them only; 0 or null: all.")
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


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(request: Request, body: RerankRequest, service: CurrentService) -> Any:
    """The documents, best first, with σ(reward) as their relevance."""
    texts = body.responses()
    scores = await service.score_texts(request, [(body.query, text) for text in texts])
    order = sorted(range(len(texts)), key=lambda index: -scores[index].reward)
    raw = body.raw_scores or body.use_activation is False
    values = [score.reward if raw else sigmoid(score.reward) for score in scores]
    if body.texts is not None:
        return [
            {"index": i, "score": values[i]} | ({"text": texts[i]} if body.return_text else {})
            for i in order[: body.top_n or None]
        ]
    documents: list[Any] = [text if body.raw_scores is not None else {"text": text} for text in texts]
    shown = {} if body.return_documents is False else {i: {"document": documents[i]} for i in order}
    results = [{"index": i, "relevance_score": values[i], **shown.get(i, {})} for i in order[: body.top_n or None]]
    version = "2" if request.url.path.startswith("/v2") else "1"
    counts = usage(request)
    meta = {
        "api_version": {"version": version},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": counts["total_tokens"], "output_tokens": 0},
    }
    return header("rerank", service) | {"object": "rerank", "results": results, "usage": counts, "meta": meta}
