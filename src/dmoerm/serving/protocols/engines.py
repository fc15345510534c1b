"""The inference engines vLLM and SGLang as they serve a reward model, and infinity's /classify.

All three have POST /classify, with different fields. verl uses vLLM's, or SGLang's /v1/embeddings with
`rollout.name=sglang`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from ...errors import DataError
from ...schema import Message, Prompt
from ...scores import Score
from ..service import CurrentService, Service
from .inputs import (
    LABEL,
    TEXT,
    TURNS,
    NamedRequest,
    Rendered,
    TokenIds,
    examples,
    header,
    read_rendered,
    sigmoid,
    usage,
)

router = APIRouter()
_NOTHING_GENERATED = {"completion_tokens": 0, "prompt_tokens_details": None}


class ActivationRequest(NamedRequest):
    """The fields that all of vLLM's requests share."""

    use_activation: bool | None = Field(None, description="true: σ(reward); otherwise the reward itself.")
    activation: bool | None = Field(None, description="The older name of `use_activation`.")

    def activated(self, scores: Sequence[Score]) -> list[float]:
        """Return the rewards, or their σ if the request asks for it."""
        activate = self.activation if self.use_activation is None else self.use_activation
        return [sigmoid(score.reward) if activate else score.reward for score in scores]


class ConversationRequest(ActivationRequest):
    """A conversation as messages, or texts or token ids that a chat template has rendered. The last turn is scored."""

    model_config = examples({"messages": TURNS, "use_activation": False}, {"input": [TEXT]})
    input: Rendered | None = Field(None, description="Rendered by the model's chat template, or another's; or its ids.")
    prompt_token_ids: TokenIds | list[TokenIds] | None = Field(None, description="Another name of `input` for ids.")
    messages: list[Message] | None = Field(None, description="Instead of `input`.")

    async def conversations(self, service: Service) -> list[tuple[Prompt, str]]:
        """Return prompt and response of each conversation. Raises `DataError` as `read_rendered` does."""
        rendered = self.prompt_token_ids if self.input is None else self.input
        if (self.messages is None) == (rendered is None):
            raise DataError("give either input or messages", field="input")
        return [_split(self.messages or ())] if rendered is None else await read_rendered(rendered, service)


class ClassifyRequest(ConversationRequest):
    """vLLM's `input` or `messages`; SGLang's `text`, `input_ids` or `conv`; infinity's `input` with `raw_scores`."""

    raw_scores: bool | None = Field(None, description="infinity's form: true: the reward; false: σ(reward).")
    text: str | list[str] | None = Field(None, description="SGLang's form of `input`.")
    input_ids: TokenIds | list[TokenIds] | None = Field(None, description="SGLang's form of token ids.")
    conv: list[list[Message]] | list[Message] | None = Field(None, description="SGLang's form of `messages`.")


class EmbeddingRequest(NamedRequest):
    """Conversations that a chat template has rendered, as texts or as the model's token ids."""

    model_config = examples({"input": TEXT})
    input: Rendered


class PairRequest(ActivationRequest):
    """Prompts and responses in pairs, or one prompt with several responses, under any of vLLM's names."""

    model_config = examples({"text_1": "How are you?", "text_2": ["Fine, and you?", "No."]})
    text_1: str | list[str] | None = Field(None, description="Prompts; also `queries` or `data_1`.")
    text_2: str | list[str] | None = Field(None, description="Responses; also `documents`, `items` or `data_2`.")
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None

    def pairs(self) -> list[tuple[Prompt, str]]:
        """Return (prompt, response) of each pair. Raises `DataError` if the texts do not form pairs."""
        first = _as_list([self.text_1, self.queries, self.data_1], "text_1")
        second = _as_list([self.text_2, self.documents, self.items, self.data_2], "text_2")
        if len(first) not in (1, len(second)):
            hint = "give one prompt, or as many prompts as responses"
            raise DataError(f"{len(first)} prompts, but {len(second)} responses", field="text_1", hint=hint)
        return list(zip(first * (len(second) // len(first)), second, strict=True))


def _as_list(values: Sequence[str | list[str] | None], field: str) -> list[str]:
    given = [value for value in values if value is not None]
    if len(given) != 1 or not given[0]:
        hint = "give prompts and responses as text_1 and text_2"
        raise DataError("must be given once, and not be empty", field=field, value=values, hint=hint)
    return [given[0]] if isinstance(given[0], str) else given[0]


def _split(messages: Sequence[Message]) -> tuple[Prompt, str]:
    """Split messages into prompt and response, the last message."""
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise DataError(
            "the last message is not a response",
            field="messages",
            value=[message.role for message in messages],
            hint="end with the assistant's message, which is scored; the messages before it are its prompt",
        )
    return tuple(messages[:-1]), messages[-1].text


class TokenizeRequest(NamedRequest):
    """A text or a conversation."""

    model_config = examples({"messages": TURNS}, {"prompt": "How are you?", "return_token_strs": True})
    prompt: str | None = None
    messages: list[Message] | None = Field(
        None, description="Instead of `prompt`: the tokens that the model reads, up to where a response begins."
    )
    add_special_tokens: bool = Field(True, description="For `prompt`: whether the tokenizer adds its special tokens.")
    return_token_strs: bool = False


@router.post("/classify", tags=["vLLM", "SGLang", "infinity"])
async def classify(request: Request, body: ClassifyRequest, service: CurrentService) -> Any:
    """The reward as a classifier's only class, in the form of the client that sends such a request."""
    sglang: Any = body.conv if body.conv is not None else body.input_ids if body.text is None else body.text
    if sglang is not None:  # for SGLang, a reward model's output is an embedding of width 1
        single = isinstance(sglang, str) or (len(sglang) > 0 and isinstance(sglang[0], int | Message))
        if body.conv is None:
            texts = await read_rendered(sglang, service)
        elif not sglang:
            raise DataError("has no conversation", field="conv", hint="give one or more lists of messages")
        else:
            talks: Any = [sglang] if single else sglang
            texts = [_split(messages) for messages in talks]
        scores = await service.score_texts(request, texts)
        outputs = [{"embedding": [score.reward], "meta_info": {"id": uuid.uuid4().hex}} for score in scores]
        return outputs[0] if single else outputs
    scores = await service.score_texts(request, await body.conversations(service))
    if body.raw_scores is not None:
        values = [score.reward if body.raw_scores else sigmoid(score.reward) for score in scores]
        data: Any = [[{"score": value, "label": LABEL}] for value in values]
        return header("infinity", service) | {"object": "classify", "data": data, "usage": usage(request)}
    rewards = body.activated(scores)
    data = [{"index": i, "label": LABEL, "probs": [reward], "num_classes": 1} for i, reward in enumerate(rewards)]
    return header("classify", service) | {"data": data, "usage": usage(request) | _NOTHING_GENERATED}


@router.post("/v1/embeddings", tags=["SGLang"])
async def embeddings(request: Request, body: EmbeddingRequest, service: CurrentService) -> dict[str, Any]:
    """The reward as an embedding of width 1."""
    scores = await service.score_texts(request, await read_rendered(body.input, service))
    data = [{"object": "embedding", "embedding": [score.reward], "index": i} for i, score in enumerate(scores)]
    return header("embd", service) | {"data": data, "usage": usage(request)}


@router.post("/pooling", tags=["vLLM"])
async def pooling(request: Request, body: ConversationRequest, service: CurrentService) -> dict[str, Any]:
    """The reward as a pooled output of width 1."""
    scores = await service.score_texts(request, await body.conversations(service))
    data = [{"index": i, "object": "pooling", "data": [reward]} for i, reward in enumerate(body.activated(scores))]
    return header("pool", service) | {"data": data, "usage": usage(request) | _NOTHING_GENERATED}


@router.post("/score", tags=["vLLM"])
async def score(request: Request, body: PairRequest, service: CurrentService) -> dict[str, Any]:
    """The reward of each response. `/v1/score` is this project's own protocol."""
    rewards = enumerate(body.activated(await service.score_texts(request, body.pairs())))
    data = [{"index": i, "object": "score", "score": reward} for i, reward in rewards]
    return header("score", service) | {"data": data, "usage": usage(request)}


@router.post("/tokenize", tags=["vLLM"])
async def tokenize(body: TokenizeRequest, service: CurrentService) -> dict[str, Any]:
    """The token ids of a text, or of a conversation as the model reads it."""
    if (body.prompt is None) == (body.messages is None):
        raise DataError("give either prompt or messages", field="prompt")
    encoder = service.model.encoder
    content = body.prompt if body.messages is None else body.messages
    if not content:
        raise DataError("is empty", field="messages", hint="give one or more messages, or a prompt")
    tokens = await service.batcher.tokens(content, body.add_special_tokens)
    strings = encoder.tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None
    return {"count": len(tokens), "max_model_len": encoder.max_length, "tokens": tokens, "token_strs": strings}
