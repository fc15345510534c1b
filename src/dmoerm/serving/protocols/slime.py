"""slime's remote reward model (`--rm-type remote_rm --rm-url http://…/remote_rm`), which sends one sample per request.

`?key=NAME` gives a sample's number under a name, for `--reward-key NAME`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from ...schema import Message
from ..service import CurrentService
from .inputs import PROMPT, TURNS, examples

router = APIRouter(tags=["slime"])


class SampleRequest(BaseModel):
    """A prompt as messages or as the policy reads it, and its response."""

    model_config = examples(
        {"prompt": TURNS[:1], "response": "Fine, and you?", "label": None},
        {"prompt": PROMPT, "response": "Fine, and you?<|im_end|>"},
    )
    prompt: str | list[Message]
    response: str
    label: Any = Field(None, description="Ignored.")


@router.post("/remote_rm")
async def remote_rm(
    request: Request, body: SampleRequest, service: CurrentService, key: str | None = None
) -> float | dict[str, float]:
    """The reward as a number."""
    prompt = service.transcript.prompt(body.prompt) if isinstance(body.prompt, str) else tuple(body.prompt)
    (score,) = await service.score_texts(request, [(prompt, body.response)])
    return score.reward if key is None else {key: score.reward}
