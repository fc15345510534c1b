"""What a server may be told: how it batches, and how much one client may ask of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServingConfig(BaseModel):
    """The server's limits and habits. Sizes count before anything is scored, so that no request can take it down."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens of one pass (twice a prompt's, where that is more); one counts once for each of a task's experts."""
    deterministic: bool = False
    """Score each response in a pass of its own: scores do not depend on other requests; slower."""
    batch_wait: float = Field(default=0.002, ge=0, le=1)
    """Seconds that an idle engine waits for more requests to share a pass."""
    queue_tokens: int = Field(default=262_144, ge=1)
    """Most tokens that wait; beyond, requests are answered 429."""
    queue_requests: int = Field(default=1024, ge=1)
    """Most requests that wait; beyond, they are answered 429."""
    max_connections: int = Field(default=2048, ge=1)
    """Most connections at once; beyond, they are answered 503."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Largest body of a request; a larger one is answered 413."""
    max_responses: int = Field(default=256, ge=1)
    """Most responses of one request, over all its items; more are answered 422."""
    max_request_tokens: int = Field(default=131_072, ge=1)
    """Most tokens of one request; more are answered 422."""
    receive_timeout: float = Field(default=30.0, gt=0)
    """Seconds that a client has to send a request's headers, and as many for its body."""
    api_key: str | None = Field(default=None, min_length=1, repr=False)
    """What clients must send as `Authorization: Bearer KEY`; None: everyone may ask."""
    allow_origins: tuple[str, ...] = ()
    """Web pages of other origins that may ask (CORS)."""
