"""What several protocols share: requests, inputs as texts or token ids, σ, the header of answers, and examples."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from ...errors import DataError
from ...schema import Prompt
from ..service import Service

LABEL = "REWARD"
PROMPT = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
TEXT = PROMPT + "Fine, and you?<|im_end|>\n"
TURNS: Any = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine, and you?"}]
"""A conversation for the examples in the OpenAPI description: its prompt and the whole as texts, and as messages."""

TokenIds = list[Annotated[int, Field(ge=0)]]
Rendered = str | list[str] | TokenIds | list[TokenIds]
"""One or more conversations that a chat template has rendered, as texts or as the model's token ids."""


def examples(*bodies: Any) -> ConfigDict:
    """Return the setting of a request's model that shows these bodies in the OpenAPI description."""
    return ConfigDict(json_schema_extra={"examples": [*bodies]})


class NamedRequest(BaseModel):
    """A request that may name the model."""

    model: str | None = Field(None, description="The model's name; ignored, since a server has one model.")


async def read_rendered(rendered: Rendered, service: Service) -> list[tuple[Prompt, str]]:
    """Return prompt and response of each conversation. Token ids are decoded in a thread.

    Raises:
        DataError: the input is empty, a text does not show where the response begins, or a token id is unknown.
    """
    if not rendered:
        raise DataError("has no texts", field="input", hint="give one or more texts, or lists of token ids")
    several: Any = [rendered] if isinstance(rendered, str) or isinstance(rendered[0], int) else rendered
    read, read_ids = service.transcript.read, service.transcript.read_ids
    return await asyncio.to_thread(lambda: [read(e) if isinstance(e, str) else read_ids(e) for e in several])


def header(kind: str, service: Service) -> dict[str, Any]:
    """Return the first fields of an answer in OpenAI's style."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": service.name}


def usage(request: Request) -> dict[str, Any]:
    """Return the tokens of a scored request; none are generated."""
    return {"prompt_tokens": request.state.tokens, "total_tokens": request.state.tokens}


def sigmoid(reward: float) -> float:
    """Return σ(reward), without overflow."""
    return 0.5 + 0.5 * math.tanh(reward / 2)
